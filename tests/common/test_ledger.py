"""The ledger: no row vanishes, and which of several equal samples stays does not depend on their order."""

import random
from tempfile import TemporaryFile

import pytest

from stages.common import files, ledger, nearduplicates
from stages.common.checks import Checks, Rejected
from stages.common.records import Sample, to_row

WORDS = [f"word{number}" for number in range(300)]


def sample(text: str, id_: str) -> Sample:
    fields = dict.fromkeys(("licence", "revision", "transforms", "language", "input"), "")
    return Sample(id=id_, source="mine", instruction="Do it.", output=text, **fields)


def settle(texts: list[str | None], checks: Checks) -> list[tuple[str, str]]:
    """What becomes of the texts, None being one that was rejected before: (text or "", reason or "")."""
    pieces = []
    kept = []
    for number, text in enumerate(texts):
        if text is None:
            line = files.line(vars(Rejected(f"mine/{number}", "empty", "nothing")))
            pieces.append(ledger.Piece(number, 0, line, None))
        else:
            kept.append(sample(text, f"mine/{number}"))
            pieces.append(ledger.Piece(number, 0, files.line(to_row(kept[-1])), ledger.digests(kept[-1])))
    joined = ("\n".join(ledger.texts(one)) for one in kept)
    with TemporaryFile() as lines, TemporaryFile() as signatures:
        waiting = ledger.Waiting(lines, signatures)
        waiting.add(pieces, nearduplicates.signatures(joined).tobytes() if checks.near_duplicate else b"")
        same, like = ledger.twins(waiting, checks)
        settled = list(ledger.settled(waiting, same, like, "mine"))
    assert [row for row, _, _ in settled] == list(range(len(texts)))
    return [
        (texts[row] or "", f"{failed.check}: {failed.reason}" if failed else "") for row, failed, _ in settled
    ]


def test_equal_texts_are_kept_once():
    found = settle(["A  b", None, "a b\n", "c", "a b\n"], Checks(duplicate=True))
    assert sorted(reason.partition(":")[0] for _, reason in found) == [
        "",
        "",
        "duplicate",
        "duplicate",
        "empty",
    ]
    kept = next(f"mine/{row}" for row, (text, reason) in enumerate(found) if text != "c" and not reason)
    assert {reason for _, reason in found if reason.startswith("duplicate")} == {f"duplicate: same as {kept}"}


def test_without_the_check_equal_texts_stay():
    assert [reason for _, reason in settle(["a", "a", "A"], Checks())] == ["", "", ""]


@pytest.mark.parametrize("seed", range(4))
def test_the_order_of_the_rows_does_not_matter(seed):
    random_ = random.Random(seed)
    originals = [" ".join(random_.choices(WORDS, k=100)) for _ in range(30)]
    texts: list[str | None] = []
    for _ in range(150):
        words = random_.choice(originals).split()
        words[random_.randrange(100)] = "other"
        texts.append(
            random_.choice([" ".join(words), random_.choice(originals), random_.choice(originals).upper()])
        )
    texts += [None] * 5
    checks = Checks(duplicate=True, near_duplicate=0.7)
    once = settle(texts, checks)
    random_.shuffle(texts)
    again = settle(texts, checks)
    assert sorted(text for text, reason in once if not reason) == sorted(
        text for text, reason in again if not reason
    )
    assert {reason.partition(":")[0] for _, reason in once} == {"", "empty", "duplicate", "near_duplicate"}
    assert len([1 for _, reason in once if not reason]) <= 30


def test_chunks_have_names_of_their_own():
    rows = [
        ledger.Piece(0, number, files.line(to_row(sample("x", f"mine/0#{number}"))), (1, 1, number))
        for number in (1, 2)
    ]
    with TemporaryFile() as lines, TemporaryFile() as signatures:
        waiting = ledger.Waiting(lines, signatures)
        waiting.add(rows, b"")
        checks = Checks(duplicate=True)
        settled = list(ledger.settled(waiting, *ledger.twins(waiting, checks), "mine"))
    assert settled[1][1] == Rejected("mine/0#2", "duplicate", "same as mine/0#1")
    assert ledger.tally(iter(settled)) == ledger.Tally(1, 1, 2, 1, ledger.Counter(duplicate=1))


def test_tally_counts_rows_by_their_pieces():
    reject = Rejected("mine/1", "empty", "nothing")
    found = ledger.tally(
        iter([(0, None, ""), (1, reject, ""), (2, reject, ""), (2, None, ""), (2, None, "")])
    )
    assert (found.rows, found.kept, found.pieces, found.kept_pieces) == (3, 2, 5, 3)
    assert found.reasons == {"empty": 2}


def test_nothing_is_an_empty_account():
    with TemporaryFile() as lines, TemporaryFile() as signatures:
        waiting = ledger.Waiting(lines, signatures)
        same, like = ledger.twins(waiting, Checks(duplicate=True, near_duplicate=0.8))
        assert ledger.tally(ledger.settled(waiting, same, like, "mine")).rows == 0
