"""Every answer is held against what its image got alone."""

from pathlib import Path

from serving.triton.embedded import EmbeddedServer
from tests.isolation import among_bad, among_many, ask


def test_each_gets_its_own_answer_and_another_one_is_noticed(
    server: EmbeddedServer, test_images: list[Path]
) -> None:
    """With answers that belong to other images everything good counts as wrong."""
    files = [path.read_bytes() for path in test_images[:32]]
    _, alone = ask(server.url, files, 1)
    kinds = among_bad(server.url, files, alone, rounds=2, batches=40)
    assert kinds["bad"] == 2 * 40 > kinds["kinds"]
    assert kinds["bad_not_refused_with_their_reason"] == kinds["good_not_answered_as_alone"] == 0
    assert kinds["good_over_clean"]["median"] > 0
    many = among_many(server.url, files, alone, requests=500)
    assert many["swaps_that_would_be_noticed"] > 0.9
    assert many["not_answered_as_alone"] == 0
    swapped = [*alone[1:], alone[0]]
    assert among_many(server.url, files, swapped, requests=100)["not_answered_as_alone"] > 90
