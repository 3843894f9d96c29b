"""Secrets and personal data in a text, replaced by typed placeholders; what is plainly an example stays.

`redact('mail = "ann.berg@fjordpost.no"')` gives `'mail = "<EMAIL>"'` and the count `{"EMAIL": 1}`. Only the
secret itself is replaced, so that code still parses and a hard-coded credential is still a string literal in
its place. Token formats come from the maintained plugins of detect-secrets, minus its entropy and keyword
plugins, which fire on every variable named `password`: `password = "hunter2"` is what CWE-798 looks like.
Every pattern takes time in proportion to the text, however long its lines are.
"""

import ipaddress
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from itertools import pairwise

Match = re.Match[str]


@dataclass(frozen=True)
class _Rule:
    """One pattern, tried only on texts that hold one of its anchors."""

    kind: str  # what stands in the placeholder
    anchors: tuple[str, ...]  # in lower case
    pattern: re.Pattern[str]
    group: int  # of the secret in the match; 0 is the whole match without its delimiters
    real: Callable[[str, Match], bool]  # of the secret and its match: is it to be replaced?
    spread: bool = False  # the secret is replaced wherever else it stands, too


# What is plainly an example. ---------------------------------------------------------------------------

# Words that nobody's random key contains: four letters at a given place are 1 in 457,000.
_SAMPLE = re.compile(
    r"example|sample|dummy|placeholder|fake|your|xxxx|redacted|changeme|insert|secret|password|token|apikey"
    r"|12345|23456|abcdef|qwert|test|\*\*\*|\.\.\.",
    re.IGNORECASE,
)


def _random_looking(secret: str) -> bool:
    """Digits and letters without a word of an example; at least 8 different characters."""
    return (
        len(set(secret)) >= 8
        and any(character.isdigit() for character in secret)
        and any(character.isalpha() for character in secret)
        and not _SAMPLE.search(secret)
    )


def _token(secret: str, match: Match) -> bool:
    return _random_looking(secret)


def _webhook(secret: str, match: Match) -> bool:
    return _random_looking(secret.rsplit("/", 1)[-1])


def _jwt(secret: str, match: Match) -> bool:
    """Header and payload are base64 of JSON, as the plugin demands; jwt.io's John Doe is an example."""
    from detect_secrets.plugins.jwt import JwtTokenDetector

    payload = secret.split(".")[1]
    return JwtTokenDetector.is_formally_valid(secret) and not payload.startswith("eyJzdWIiOiIxMjM0NTY3ODkw")


# RFC 2606, RFC 6761 and RFC 6762, and the names of private networks.
_RESERVED = re.compile(
    r"(?:^|\.)(?:example|test|invalid|localhost|local|internal|lan)$|(?:^|\.)example\.\w+$", re.IGNORECASE
)


def _example_host(host: str) -> bool:
    """A reserved name, a name without a dot (a service of docker-compose), or an address that is no one's."""
    if "." not in host or _RESERVED.search(host):
        return True
    try:
        return not _public(ipaddress.ip_address(host))
    except ValueError:
        return False


_TEMPLATED = re.compile(r"[{}<>%]|^[A-Z_]+$")  # `{password}`, `<password>`, `%s`, `PASSWORD`
_HOST = re.compile(r"[A-Za-z0-9.-]{0,253}")


def _basic_auth(secret: str, match: Match) -> bool:
    """A password of 8 characters or more that is neither a template nor a word nor for an example's host."""
    host = _HOST.match(match.string, match.end())
    if _TEMPLATED.search(secret) or len(secret) < 8 or not _random_looking(secret):
        return False
    return host is not None and not _example_host(host[0])


# Of an e-mail address: the words of people's examples. A name of a person at a provider is not one.
_SAMPLE_LOCAL = re.compile(
    r"(?:my|your|new|old)?[._-]?(?:e?-?mail(?:address)?|user(?:name)?|name|first|last|test(?:er|ing)?|foo|bar|baz|abc|xyz"
    r"|someone|some|somebody|sample|example|john|jane|doe|smith|alice|bob|me|you|git|no-?reply|recipient|sender"
    r"|receiver|from|to|address|admin|info|support|contact|hello|root|webmaster|postmaster|invalid|valid"
    r"|[._+-]|\d)+",
    re.IGNORECASE,
)
_SAMPLE_DOMAIN = re.compile(
    r"(?:^|\.)(?:(?:my|your|some|a|the)?-?(?:e?-?mail|domain|company|website|site|server|host|test|foo|bar|baz|abc|xyz"
    r"|sample|example|acme|contoso|provider|organi[sz]ation|address)(?:name)?\d?)\.[a-z.]+$",
    re.IGNORECASE,
)
# Endings that no address has: file names (`icon@2x.png`, `pkg@1.0.js`) and attributes (`a@b.shape`).
_NO_DOMAIN = re.compile(
    r"\.(?:png|jpe?g|gif|svg|webp|js|mjs|css|scss|ts|tsx|json|html?|php|shape|get|dot)$", re.I
)


def _email(secret: str, match: Match) -> bool:
    """An address that could be somebody's."""
    local, domain = secret.split("@")
    if _RESERVED.search(domain) or _NO_DOMAIN.search(domain) or _SAMPLE_DOMAIN.search(domain):
        return False
    text, start = match.string, match.start()
    if start and text[start - 1] in ":/" and "://" in text[max(0, start - 256) : start].split()[-1]:
        return False  # the user or the password of a URL: _basic_auth decides on those
    return any(map(str.isalnum, local)) and not _SAMPLE_LOCAL.fullmatch(local)


# Public resolvers: services that everybody names, no one's address.
_RESOLVERS = {
    *("8.8.8.8", "8.8.4.4", "1.1.1.1", "1.0.0.1", "9.9.9.9", "149.112.112.112", "4.2.2.1", "4.2.2.2"),
    *("208.67.222.222", "208.67.220.220", "2001:4860:4860::8888", "2001:4860:4860::8844"),
    *("2606:4700:4700::1111", "2606:4700:4700::1001"),
}
_VERSION = re.compile(
    r"(?:version|\bver|\bv|release|build|revision|==|[A-Za-z]/|@|~|\^)\W{0,3}$", re.IGNORECASE
)


def _public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    return address.is_global and not address.is_multicast and not address.is_reserved


def _address(secret: str, match: Match) -> bool:
    """A public unicast address of a host."""
    try:
        address = ipaddress.ip_address(secret)
    except ValueError:
        return False
    return _public(address) and secret not in _RESOLVERS


def _ipv4(secret: str, match: Match) -> bool:
    """A public address that stands alone: no version, no network, no counting (1.2.3.4, 5.5.5.5)."""
    text, start, end = match.string, match.start(), match.end()
    if start and (text[start - 1].isalnum() or text[start - 1] in "._-"):
        return False
    after = text[end : end + 2]
    if after and (after[0].isalnum() or after[0] == "_" or (after[0] in ".-" and after[1:].isalnum())):
        return False
    octets = [int(octet) for octet in secret.split(".")]
    steps = {second - first for first, second in pairwise(octets)}
    if len(steps) == 1 or octets[-1] in (0, 255) or _VERSION.search(text, max(0, start - 24), start):
        return False
    return _address(secret, match)


def _ipv6(secret: str, match: Match) -> bool:
    """A global unicast address that is not a piece of a longer word."""
    text, start, end = match.string, match.start(), match.end()
    whole = not (start and (text[start - 1].isalnum() or text[start - 1] in "_:."))
    return (
        whole
        and not (text[end : end + 1].isalnum() or text[end : end + 1] in ("_", ":"))
        and _address(secret, match)
    )


# Rules. ------------------------------------------------------------------------------------------------

# Of each regex plugin of detect-secrets 1.5: our kind, its anchors, the group of the secret, and whether the
# pattern knows the secret by the name before it. Left out, with what stands in for them: `ip_public` (_ipv4),
# `private_key` (its patterns find headers, _keys takes the body), `jwt`, `openai` and `npm` (_OWN: their
# patterns take quadratic time on a hostile line), `keyword` and `high_entropy_strings` (nothing).
PLUGINS: dict[str, tuple[str, tuple[str, ...], int, bool]] = {
    "artifactory": ("ARTIFACTORY_TOKEN", ("akc", "ap"), 0, False),
    "aws": ("AWS_KEY", ("akia", "asia", "abia", "acca", "a3t", "aws"), 1, True),
    "azure_storage_key": ("AZURE_KEY", ("accountkey=",), 0, False),
    "basic_auth": ("BASIC_AUTH", ("://",), 1, False),
    "cloudant": ("CLOUDANT_KEY", ("cl",), 1, True),
    "discord": ("DISCORD_TOKEN", (".",), 0, False),
    "github_token": ("GITHUB_TOKEN", ("ghp_", "gho_", "ghu_", "ghs_", "ghr_"), 0, False),
    "gitlab_token": (
        "GITLAB_TOKEN",
        (
            "glpat",
            "gldt",
            "glft",
            "glsoat",
            "glrt",
            "gr1348941",
            "glcbt",
            "glimt",
            "glptt",
            "glagent",
            "gloas",
        ),
        0,
        False,
    ),
    "ibm_cloud_iam": ("API_KEY", ("key", "pwd", "pass", "token"), 1, True),
    "ibm_cos_hmac": ("API_KEY", ("secret",), 1, True),
    "mailchimp": ("MAILCHIMP_KEY", ("-us",), 0, False),
    "pypi_token": ("PYPI_TOKEN", ("pypi-ag",), 0, False),
    "sendgrid": ("SENDGRID_KEY", ("sg.",), 0, False),
    "slack": ("SLACK_TOKEN", ("xox", "hooks.slack.com"), 0, False),
    "softlayer": ("SOFTLAYER_KEY", ("softlayer", "sl"), 1, True),
    "square_oauth": ("SQUARE_SECRET", ("sq0csp-",), 0, False),
    "stripe": ("STRIPE_KEY", ("k_live_",), 0, False),
    "telegram_token": ("TELEGRAM_TOKEN", (":",), 0, False),
    "twilio": ("TWILIO_KEY", ("ac", "sk"), 0, False),
}

_OWN = (
    _Rule("JWT", ("eyj",), re.compile(r"(?<![\w=-])eyJ[\w=-]+\.[\w=-]+(?:\.[\w=-]*)?", re.ASCII), 0, _jwt),
    _Rule(
        "OPENAI_KEY", ("t3blbkfj",), re.compile(r"(?<![\w-])sk-[\w-]*T3BlbkFJ[\w-]{20,}", re.ASCII), 0, _token
    ),
    _Rule("NPM_TOKEN", ("npm_",), re.compile(r"npm_[A-Za-z0-9]{36}"), 0, _token),
    _Rule("NPM_TOKEN", ("_authtoken",), re.compile(r"_authToken=[ \t]{0,8}([A-Fa-f0-9-]{36})"), 1, _token),
    # Formats that the plugins do not have: their issuers' published prefixes.
    _Rule("GITHUB_TOKEN", ("github_pat_",), re.compile(r"github_pat_[A-Za-z0-9_]{22,255}"), 0, _token),
    _Rule("GOOGLE_KEY", ("aiza",), re.compile(r"AIza[A-Za-z0-9_-]{35}"), 0, _token),
    _Rule("ANTHROPIC_KEY", ("sk-ant-",), re.compile(r"sk-ant-[A-Za-z0-9_-]{80,120}"), 0, _token),
    _Rule("HUGGINGFACE_TOKEN", ("hf_",), re.compile(r"hf_[A-Za-z0-9]{34}"), 0, _token),
)
_EMAIL = _Rule(
    "EMAIL",
    ("@",),
    re.compile(r"(?<![\w.%+-])[\w.%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![\w-])", re.ASCII),
    0,
    _email,
)
_IPV4 = _Rule("IP_ADDRESS", (".",), re.compile(r"\d{1,3}(?:\.\d{1,3}){3}", re.ASCII), 0, _ipv4)
_IPV6 = _Rule("IP_ADDRESS", (":",), re.compile(r"[23][0-9A-Fa-f]{3}:[0-9A-Fa-f:]{1,35}"), 0, _ipv6)

# Cheap signs without which no rule of a family can match: most texts have none of them.
_LONG = re.compile(
    r"[A-Za-z0-9_/+-]{20}"
)  # a token's longest run; keys of 40 characters of base64 have one too
_DOTTED = re.compile(r"\.\d{1,3}\.\d{1,3}\.\d", re.ASCII)
_COLONS = re.compile(r":[0-9A-Fa-f]{0,4}:")


@cache
def _plugin(name: str) -> tuple[_Rule, ...]:
    """The rules of one plugin; the first call imports detect-secrets (0.2 s)."""
    from importlib import import_module

    kind, anchors, group, spread = PLUGINS[name]
    module = vars(import_module(f"detect_secrets.plugins.{name}"))
    (plugin,) = (value for value in module.values() if _own(value, module["__name__"]))
    real = {"basic_auth": _basic_auth, "slack": _webhook}.get(name, _token)
    return tuple(
        _Rule(kind, anchors, _bounded(pattern), group if pattern.groups else 0, real, spread)
        for pattern in plugin.denylist
    )


def _bounded(pattern: re.Pattern[str]) -> re.Pattern[str]:
    """The plugins' assignments allow any number of spaces in three places: cubic time. Four are enough."""
    source = pattern.pattern.replace("(?: *)", "(?: {0,4})").replace("| +|", "| {1,4}|")
    return re.compile(source, pattern.flags)


def _own(value: object, module: str) -> bool:
    return getattr(value, "__module__", "") == module and hasattr(value, "denylist")


@cache
def _tokens() -> tuple[_Rule, ...]:
    """The rules for keys and tokens: ours and those of the plugins."""
    return (*_OWN, *(rule for name in PLUGINS if name != "basic_auth" for rule in _plugin(name)))


def _rules(text: str) -> list[_Rule]:
    """The rules that could match in a text, in the order in which they apply."""
    rules: list[_Rule] = []
    if _LONG.search(text):
        folded = text.lower()
        rules += [rule for rule in _tokens() if any(anchor in folded for anchor in rule.anchors)]
    if "@" in text:
        rules += [*(_plugin("basic_auth") if "://" in text else ()), _EMAIL]
    if _DOTTED.search(text):
        rules.append(_IPV4)
    if _COLONS.search(text):
        rules.append(_IPV6)
    return rules


# Replacement. ------------------------------------------------------------------------------------------

_DELIMITED = re.compile(r'(?:AccountKey=|[\s=:"])*')  # what a plugin's pattern takes in before its secret
_RUN = re.compile(r"[A-Za-z0-9_/+-]{20,}=*")


def _span(rule: _Rule, match: Match) -> tuple[int, int]:
    """Where in the text the secret of a match stands."""
    start, end = match.span(rule.group)
    if rule.group == 0:
        start += len(_delimiters(match[0]))
        end = start + len(match.string[start:end].rstrip('" \t\r\n'))
    return start, end


def _delimiters(matched: str) -> str:
    lead = _DELIMITED.match(matched)
    return lead[0] if lead else ""


def _apply(rule: _Rule, text: str, counts: Counter[str]) -> str:
    placeholder = f"<{rule.kind}>"
    found: set[str] = set()

    def replaced(match: Match) -> str:
        start, end = _span(rule, match)
        secret = text[start:end]
        if not rule.real(secret, match):
            return match[0]
        counts[rule.kind] += 1
        if rule.spread:
            found.add(secret)
        return text[match.start() : start] + placeholder + text[end : match.end()]

    def again(match: Match) -> str:
        if match[0] not in found:
            return match[0]
        counts[rule.kind] += 1
        return placeholder

    done = rule.pattern.sub(replaced, text)
    return _RUN.sub(again, done) if found else done


# A private key: the base64 after its header, in one literal or several. A header alone is code about keys.
_HEADER = re.compile(r"-----BEGIN [A-Z0-9 ]{0,32}PRIVATE KEY(?: BLOCK)?-----|PuTTY-User-Key-File-[23]")
_FOOTER = re.compile(r"-----END |Private-MAC")
_BODY = re.compile(  # after `\n` written out, the n is not a part of it
    r"(?:(?<=\\[rn])|(?<![A-Za-z0-9+/=\\]))[A-Za-z0-9+/=]{16,}(?:(?:\\[rn]|\s){1,8}[A-Za-z0-9+/=]+)*"
)
_BODY_CHARS = 16_384  # of 8,192 bits, the longest RSA key in use, base64 takes 6,400


def _keys(text: str, counts: Counter[str]) -> str:
    """Replace the bodies of private keys."""
    parts, last = [], 0
    headers = [match.span() for match in _HEADER.finditer(text)]
    for number, (_, start) in enumerate(headers):
        limit = headers[number + 1][0] if number + 1 < len(headers) else len(text)
        limit = min(limit, start + _BODY_CHARS)
        footer = _FOOTER.search(text, start, limit)
        body = text[start : footer.start() if footer else limit]
        if footer is None:  # a key that was cut off: the first run, if it follows at once
            first = _BODY.search(body)
            body = body[: first.end()] if first and first.start() <= 8 else ""
        if not _random_looking(
            "".join(_BODY.findall(body))[:64]
        ):  # the first line: in all, chance spells words
            continue
        counts["PRIVATE_KEY"] += 1
        parts += [text[last:start], _BODY.sub("<PRIVATE_KEY>", body)]
        last = start + len(body)
    return "".join([*parts, text[last:]])


def redact(text: str) -> tuple[str, Counter[str]]:
    """The text with every real-looking secret replaced by a placeholder, and how many there were by kind.

    Kinds are `EMAIL`, `IP_ADDRESS`, `PRIVATE_KEY`, `BASIC_AUTH` (the password in a URL) and those of the
    token rules. Each has one placeholder: one secret reads the same everywhere, in both sides of a pair too.
    Redacting twice changes nothing: a placeholder matches no rule.

    >>> redact("ping 8.8.8.8, then 185.199.108.153")
    ('ping 8.8.8.8, then <IP_ADDRESS>', Counter({'IP_ADDRESS': 1}))
    """
    counts: Counter[str] = Counter()
    while True:  # what a rule took away can have hidden something from a rule before it
        before = text
        if "PRIVATE KEY" in text or "PuTTY" in text:
            text = _keys(text, counts)
        for rule in _rules(text):
            text = _apply(rule, text, counts)
        if text == before:
            return text, counts
