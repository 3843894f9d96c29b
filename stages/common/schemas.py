"""What a raw row holds: the required keys of every upstream shape that `fetch` brings and `filter` parses."""

from typing import Literal, get_args

Schema = Literal["functions", "alpaca", "preferences", "fixes", "faults", "humaneval"]

SCHEMAS: dict[Schema, tuple[str, ...]] = {
    # documented Python functions, cut out of a package's modules by `fetch`
    "functions": ("path", "name", "code"),
    # instruction data, as Stanford's Alpaca and CodeAlpaca publish it
    "alpaca": ("instruction", "input", "output"),
    # CyberNative/Code_Vulnerability_Security_DPO, which also has `system`
    "preferences": ("lang", "vulnerability", "question", "chosen", "rejected"),
    # hitoshura25/crossvul, which also has `file_pair_id`, `source` and `language_dir`
    "fixes": ("cwe_id", "cwe_description", "language", "vulnerable_code", "fixed_code"),
    # functions with and without the handling of one fault, and the tests that tell them apart
    "faults": (
        "language",
        "fault",
        "instruction",
        "code",
        "incomplete",
        "missing",
        "remedy",
        "test",
        "fault_test",
    ),
    # OpenAI's HumanEval
    "humaneval": ("task_id", "prompt", "entry_point", "canonical_solution", "test"),
}

assert get_args(Schema) == tuple(SCHEMAS)  # noqa: S101 (the type and the table name the same schemas)
