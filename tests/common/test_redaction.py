"""Redaction: real-looking secrets go, examples stay, and the code around them stays code."""

import ast
import pkgutil
import random
import re
from collections import Counter

import pytest

from stages.common import redaction
from stages.common.redaction import redact

# Made up. Written in pieces, so that no scanner takes this file for a leak.
BODY = "k7Jd93LqzPw2Rt5YbN8vXc1MfG6hS0aQeU4iO9Zx"
TOKENS = {
    "AWS_KEY": "AKIA" + "4QXB7ZP2MNR8TKVD",
    "ANTHROPIC_KEY": "sk-ant-" + BODY * 2,
    "ARTIFACTORY_TOKEN": "AKC" + BODY,
    "AZURE_KEY": "AccountKey=" + BODY * 2 + "aB3dE5==",
    "DISCORD_TOKEN": "M" + BODY[:23] + "." + BODY[:6] + "." + BODY[:27],
    "GITHUB_TOKEN": "ghp_" + BODY[:36],
    "GITLAB_TOKEN": "glpat-" + BODY[:20],
    "GOOGLE_KEY": "AIza" + BODY[:35],
    "HUGGINGFACE_TOKEN": "hf_" + BODY[:34],
    "JWT": "eyJhbGciOiJIUzI1NiJ9." + "eyJ1c2VyIjoia2FyaSIsInYiOjd9." + "q9Xw3Kd8fT2mVb",
    "MAILCHIMP_KEY": BODY[:32].lower() + "-us6",
    "NPM_TOKEN": "npm_" + BODY[:36],
    "OPENAI_KEY": "sk-" + BODY[:20] + "T3BlbkFJ" + BODY[20:],
    "PYPI_TOKEN": "pypi-" + "AgEIcHlwaS5vcmc" + BODY * 2,
    "SENDGRID_KEY": "SG." + BODY[:22] + "." + BODY + "a1b",
    "SLACK_TOKEN": "xoxb-" + "2834819382-" + BODY[:24],
    "SQUARE_SECRET": "sq0csp-" + BODY + "a1b",
    "STRIPE_KEY": "sk_live_" + BODY[:24],
    "TELEGRAM_TOKEN": "610735249" + ":" + BODY[:35],
    "TWILIO_KEY": "SK" + BODY[:32].lower(),
    "EMAIL": "anna.berg" + "@fjordpost.no",
    "IP_ADDRESS": "185.199.108.153",
}


@pytest.mark.parametrize("kind", TOKENS)
def test_a_secret_becomes_its_placeholder_inside_its_literal(kind):
    code = f'value = "{TOKENS[kind]}"\nsend(value)\n'
    label = "AccountKey=" if kind == "AZURE_KEY" else ""
    assert redact(code) == (f'value = "{label}<{kind}>"\nsend(value)\n', Counter({kind: 1}))
    ast.parse(redact(code)[0])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f'aws_secret_key = "{BODY}"', 'aws_secret_key = "<AWS_KEY>"'),
        (f'aws_secret_key = "{BODY}"\nuse("{BODY}")', 'aws_secret_key = "<AWS_KEY>"\nuse("<AWS_KEY>")'),
        ("db = 'postgres://svc:R7kd93Lq1z@db.fjordpost.no/x'", "db = 'postgres://svc:<BASIC_AUTH>@db.fjordpost.no/x'"),
        ("[2a00:1450:400f:80d::200e]:443", "[<IP_ADDRESS>]:443"),
        ("http://185.199.108.153:80/a", "http://<IP_ADDRESS>:80/a"),
        ("From 185.199.108.153.", "From <IP_ADDRESS>."),
        ("mailto:a.berg@fjordpost.no,", "mailto:<EMAIL>,"),
        (
            f"'-----BEGIN RSA PRIVATE KEY-----\\n'\n'{BODY}\\n'\n'-----END RSA PRIVATE KEY-----'",
            "'-----BEGIN RSA PRIVATE KEY-----\\n'\n'<PRIVATE_KEY>\\n'\n'-----END RSA PRIVATE KEY-----'",
        ),
        (
            f'"-----BEGIN EC PRIVATE KEY-----\\n{BODY}\\n{BODY}\\n-----END EC PRIVATE KEY-----"',
            '"-----BEGIN EC PRIVATE KEY-----\\n<PRIVATE_KEY>\\n-----END EC PRIVATE KEY-----"',
        ),
        (
            f"-----BEGIN PRIVATE KEY-----\r\n{BODY}\r\n{BODY}\r\n-----END PRIVATE KEY-----",
            "-----BEGIN PRIVATE KEY-----\r\n<PRIVATE_KEY>\r\n-----END PRIVATE KEY-----",
        ),
        (f'"-----BEGIN PRIVATE KEY-----\\n{BODY}"', '"-----BEGIN PRIVATE KEY-----\\n<PRIVATE_KEY>"'),
    ],
)  # fmt: skip
def test_only_the_secret_is_replaced(text, expected):
    assert redact(text)[0] == expected


@pytest.mark.parametrize(
    "text",
    [
        'password = "hunter2"',
        'api_key = "12345"',
        'SECRET_KEY = "my-secret-key-do-not-use"',
        'token = "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFGH"',
        "aws_access_key_id = AKIAIOSFODNN7EXAMPLE",
        'aws_secret_access_key = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"',
        "ghp_xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx",
        "Bearer eyJhbGciOiJIUzI1NiIsInR5cCI6IkpXVCJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N",
        "eyJa.eyJb.c is no token",
        "ann@example.com, ann@mail.example.org, root@localhost, x@y.test, user@domain.com",
        "john.doe@gmail.com",
        "git@github.com:me/it.git, icon@2x.png, lodash@4.17.21, a@b.shape, @app.route, %@gmail.com",
        "0.0.0.0 127.0.0.1 10.1.2.3 192.168.0.7 192.0.2.44 198.51.100.3 203.0.113.9",
        "255.255.255.0 169.254.1.1 224.0.0.251",
        "8.8.8.8 1.1.1.1 1.2.3.4 5.5.5.5 300.1.2.3 1.2.3.4.5 a1.22.9.4",
        "version 14.2.9.1 v14.2.9.1 Chrome/14.2.9.1",
        "14.2.0.0/16, ==14.2.9.1, 14.2.9.1-rc1, 14.2.9.1.tar.gz",
        "::1 fe80::1 2001:db8::5 [::-1] std::vector 12:34:56 2021:10:05 12:00",
        "postgres://user:password@db.fjordpost.no/x",
        "postgres://svc:{password}@db.fjordpost.no/x",
        "postgres://svc:R7kd93Lq1z@localhost:5432/x redis://svc:R7kd93Lq1z@redis:6379 ftp://svc:R7kd93Lq1z@10.1.1.1",
        'if "-----BEGIN RSA PRIVATE KEY-----" in text: raise ValueError("a key was pasted")',
        "-----BEGIN PRIVATE KEY-----\n...\n-----END PRIVATE KEY-----",
        "-----BEGIN PRIVATE KEY-----\nYOURPRIVATEKEYGOESHERE1\n-----END PRIVATE KEY-----",
        "<EMAIL> <AWS_KEY> <IP_ADDRESS>",
        "",
        "\0\ud800\r\n",
    ],
)  # fmt: skip
def test_examples_stay(text):
    assert redact(text) == (text, Counter())


def test_counts_add_up_and_one_secret_has_one_placeholder():
    mail, key = TOKENS["EMAIL"], TOKENS["GITHUB_TOKEN"]
    text, counts = redact(f"{mail} {key} {mail} other.person@fjordpost.no")
    assert text == "<EMAIL> <GITHUB_TOKEN> <EMAIL> <EMAIL>"
    assert counts == {"EMAIL": 3, "GITHUB_TOKEN": 1}


def test_redacting_twice_changes_nothing():
    draw = random.Random(7)
    pieces = [*TOKENS.values(), f'aws_key = "{BODY}"', "ftp://u:R7kd93Lq1z@a.no", BODY, "<EMAIL>"]
    pieces += ["", " ", ".", "@", "-", "_", ":", "//", '"', "=", "key", "a", "7", "\n", "\ud800", "é"]
    pieces += [f"-----BEGIN PRIVATE KEY-----{end}{BODY}" for end in ("\n", "")] + [
        "-----END PRIVATE KEY-----"
    ]
    for _ in range(3_000):
        text = "".join(draw.choices(pieces, k=draw.randint(1, 8)))
        once, _counts = redact(text)
        assert redact(once) == (once, Counter()), text


def test_every_regex_plugin_is_used_or_left_out_on_purpose():
    import detect_secrets.plugins as plugins

    left_out = {"base", "ip_public", "private_key", "jwt", "openai", "npm", "keyword", "high_entropy_strings"}
    assert {module.name for module in pkgutil.iter_modules(plugins.__path__)} == set(
        redaction.PLUGINS
    ) | left_out


def test_the_issuers_prefixes_are_anchors_of_their_own_patterns():
    """A text that matches a rule's pattern holds one of its anchors: without it the rule is never tried."""
    rules = [*redaction._tokens(), *redaction._plugin("basic_auth")]
    for kind, token in TOKENS.items():
        hits = [rule for rule in rules if rule.pattern.search(f'"{token}"')]
        assert hits or kind in ("EMAIL", "IP_ADDRESS"), kind
        for rule in hits:
            assert any(anchor in token.lower() for anchor in rule.anchors), (kind, rule)


@pytest.mark.parametrize(
    "piece",
    ["eyJ", "sk-", "sk-T3BlbkFJ", "/", "//a/:_authToken", "a@", "a.", "@a.", "://a:b", "key ", "aws token '",
     "1.", "2001:", "xoxb-1-", "AKIA", "glagent-", "-----BEGIN EC PRIVATE KEY-----", "-----BEGIN ", "M", "7"],
)  # fmt: skip
def test_a_long_hostile_line_ends(piece):
    """Quadratic time would need hours for these; the test is that it comes back."""
    text = piece * (400_000 // len(piece)) + " " * 100_000 + "@ :// T3BlbkFJ _authToken " + "x" * 20
    assert len(redact(text)[0]) > 0


def test_no_plugin_pattern_is_left_with_unbounded_blanks():
    for rule in redaction._tokens():
        assert not re.search(r" [*+]", rule.pattern.pattern), rule.pattern.pattern
