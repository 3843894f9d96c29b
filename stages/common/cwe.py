"""Names of the weaknesses that the pipeline talks about, from MITRE's CWE list (cwe.mitre.org)."""

import re

NAMES = {
    "CWE-20": "improper input validation",
    "CWE-22": "path traversal",
    "CWE-77": "command injection",
    "CWE-78": "operating system command injection",
    "CWE-79": "cross-site scripting",
    "CWE-89": "SQL injection",
    "CWE-90": "LDAP injection",
    "CWE-94": "code injection",
    "CWE-113": "HTTP header injection",
    "CWE-117": "log injection",
    "CWE-119": "access outside the bounds of a buffer",
    "CWE-120": "copy without checking the size of the input",
    "CWE-125": "out-of-bounds read",
    "CWE-134": "externally controlled format string",
    "CWE-190": "integer overflow",
    "CWE-200": "exposure of sensitive information",
    "CWE-208": "observable timing difference",
    "CWE-209": "error message with sensitive information",
    "CWE-287": "improper authentication",
    "CWE-295": "improper certificate validation",
    "CWE-306": "missing authentication",
    "CWE-312": "clear-text storage of sensitive information",
    "CWE-319": "clear-text transmission of sensitive information",
    "CWE-327": "broken or risky cryptography",
    "CWE-330": "insufficiently random values",
    "CWE-352": "cross-site request forgery",
    "CWE-416": "use after free",
    "CWE-434": "unrestricted upload of dangerous files",
    "CWE-476": "NULL pointer dereference",
    "CWE-502": "deserialization of untrusted data",
    "CWE-532": "sensitive information in logs",
    "CWE-601": "open redirect",
    "CWE-611": "XML external entity reference",
    "CWE-639": "authorization bypass through a user-controlled key",
    "CWE-732": "incorrect permissions for a critical resource",
    "CWE-787": "out-of-bounds write",
    "CWE-798": "hard-coded credentials",
    "CWE-843": "type confusion",
    "CWE-862": "missing authorization",
    "CWE-916": "password hash with insufficient effort",
    "CWE-918": "server-side request forgery",
    "CWE-1336": "template injection",
}


def name(cwe: str) -> str:
    """The weakness in words: `name("CWE-89") == "SQL injection"`; others are named by their number."""
    return NAMES.get(cwe, f"a weakness listed as {cwe}" if cwe else "a security weakness")


def find(text: str) -> str:
    """The first CWE number in a text: `find("cwe 089: SQL") == "CWE-89"`; "" where there is none."""
    match = re.search(r"\bCWE[- ]?0*([1-9][0-9]{0,3})\b", text, re.IGNORECASE)
    return f"CWE-{match[1]}" if match else ""
