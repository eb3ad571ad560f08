"""D. Correctness and model change: every answer is the caller's own, and of the version that it names."""

import csv
import json
import random
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fruitstand.contract import FRUIT_RESNET
from fruitstand.repository.versions import published_versions, serving_state
from fruitstand_client import Client
from fruitstand_client.prediction import Prediction
from tests.nightly.chaos import bad_candidates
from tests.nightly.chaos.commands import Starter, document, must, run
from tests.nightly.chaos.load import Load, Record, capacity
from tests.nightly.chaos.material import ANY_SPEED
from tests.nightly.chaos.pictures import many_pictures, picture
from tests.nightly.chaos.setting import (
    UNCOUNTED,
    Claim,
    Outcome,
    Setting,
    at_least,
    at_most,
    equals,
    none_failed,
    none_of,
)
from tests.nightly.chaos.stack import Stack

MAX_DIFFERENCE = 1e-4
IN_FLIGHT = 256
KNOWN_PICTURES = 64
MIN_AGREEMENT = 0.999
SWITCH_S = 1.0
REFUSED_S = 30.0
ROLLED_BACK_S = 60.0


def _answers(stack: Stack, pictures: Sequence[bytes]) -> list[Prediction]:
    """To each alone, one after the other."""
    with Client(stack.url) as client:
        found = [client.classify_batch([one])[0] for one in pictures]
    stack.answered += len(found)
    return found


def _difference(one: Prediction, other: Prediction) -> float:
    """Between two answers: of the probabilities, and 1 where another class comes first."""
    if one.label != other.label:
        return 1.0
    known = {ranked.label: ranked.probability for ranked in other.top_k}
    return max(abs(ranked.probability - known.get(ranked.label, 1.0)) for ranked in one.top_k)


def swapped_answers(setting: Setting) -> Outcome:
    """16: every answer belongs to its image, and is what PyTorch would say."""
    pictures, dice = many_pictures(KNOWN_PICTURES), random.Random(16)
    requests = [[dice.randrange(KNOWN_PICTURES) for _ in range(dice.randint(1, 8))] for _ in range(500)]
    mean_images, worst = sum(map(len, requests)) / len(requests), 0.0
    with setting.stack() as stack:
        alone = _answers(stack, pictures)

        def check(position: int, answers: Sequence[Prediction]) -> str | None:
            nonlocal worst
            differences = [
                _difference(answer, alone[number])
                for answer, number in zip(answers, requests[position], strict=True)
            ]
            worst = max(worst, *differences)
            return "another answer than alone" if max(differences) > MAX_DIFFERENCE else None

        sent = [[pictures[number] for number in request] for request in requests]
        with Load(stack, sent, rate=0, in_flight=IN_FLIGHT, deadline_s=30, check=check) as load:
            while len(load.ledger.records) * mean_images < setting.tier.images:
                time.sleep(0.1)
    skew = _agreement(setting)
    distinct = len({tuple(ranked.probability for ranked in one.top_k) for one in alone})
    numbers = {
        **load.ledger.numbers(), "images": int(len(load.ledger.records) * mean_images),
        "wrong": len(load.ledger.wrong), "max_difference": worst, "distinct_answers": distinct, **skew,
    }  # fmt: skip
    claims = (
        none_of("answers that belong to another image", load.ledger.wrong),
        none_failed("no call fails", load.ledger),
        at_least("distinct answers, so that a swap shows", distinct, KNOWN_PICTURES // 2 + 1),
        at_least("top-1 agreement with PyTorch", skew["top1_agreement_with_pytorch"], MIN_AGREEMENT),
    )
    return Outcome(claims, numbers)


def _agreement(setting: Setting) -> dict[str, Any]:
    """How many images of the test split PyTorch and the served path put into the same class."""
    data, answers = setting.material.data, []
    with setting.stack(setting.material.repository, name="skew", replicas=1, hurt=UNCOUNTED) as stack:
        served = document("evaluate", "--url", stack.url, "--data", data, "--out", setting.folder / "served")
    document("evaluate", "--run", setting.material.first, "--data", data, "--out", setting.folder / "torch")
    for name in ("served", "torch"):
        with (setting.folder / name / "mistakes.csv").open() as file:
            answers.append({row["path"]: row["answer"] for row in csv.DictReader(file)})
    differing = sum(answers[0].get(key) != answers[1].get(key) for key in {*answers[0], *answers[1]})
    return {
        "images_compared_with_pytorch": served["num_images"],
        "top1_agreement_with_pytorch": 1 - differing / served["num_images"],
    }


def _two_versions(setting: Setting) -> Path:
    """A repository of our own with two versions of which the first is served."""
    given = published_versions(setting.repository)
    repository = setting.copy(
        setting.repository if len(given) > 1 else setting.material.repository, "repository"
    )
    first = published_versions(repository)[0]
    state = serving_state(repository)
    if state is None or state.version != first:
        must("models", "promote", first, "--repository", repository)
    return repository


@dataclass
class _Promotions:
    """Of versions behind a gateway."""

    stack: Stack
    repository: Path
    starter: Starter
    done: list[tuple[float, float, str]] = field(default_factory=list)
    """When each began and ended, and the version."""

    def promote(self, number: int) -> None:
        """With the command, as an operator does."""
        began = time.monotonic()
        words = ("--repository", self.repository, "--control", self.stack.control)
        self.starter.must("models", "promote", number, *words)
        self.done.append((began, time.monotonic(), str(number)))


def hot_swap(setting: Setting) -> Outcome:
    """17: another version is promoted and back again, behind the gateway and under load."""
    repository, tier = _two_versions(setting), setting.tier
    first, second = published_versions(repository)[:2]
    pictures, expected = many_pictures(16), {}
    requests = [[one] for one in pictures]
    with (
        setting.stack(repository, name="answers", replicas=1, hurt=("models",)) as stack,
        Starter() as starter,
    ):
        for number in (second, first):
            _Promotions(stack, repository, starter).promote(number)
            expected[str(number)] = _answers(stack, pictures)
    with setting.stack(repository, hurt=("models",)) as stack, Starter() as starter:
        promotions = _Promotions(stack, repository, starter)

        def check(position: int, answers: Sequence[Prediction]) -> str | None:
            (answer,) = answers
            own = expected.get(answer.model_version)
            if own is None or _difference(answer, own[position]) > MAX_DIFFERENCE:
                return f"not what version {answer.model_version} answers"
            return None

        peak, rss_mib = capacity(stack, requests, seconds=5, in_flight=32), 0.0
        with Load(stack, requests, rate=peak / 2, check=check) as load:
            time.sleep(5 * tier.steady_s)  # long enough that a moment's stall does not decide
            began = time.monotonic()
            for number in (second, first) * tier.swaps:
                promotions.promote(number)
                time.sleep(1)
                if len(promotions.done) == 2:  # both are loaded, and have answered
                    rss_mib = stack.rss_mib()
            time.sleep(1)
        growth = stack.rss_mib() / rss_mib - 1
    ledger = load.ledger
    mixed = [_mixed_s(ledger.records, *one) for one in promotions.done]
    steady_ms, swap_ms = ledger.quantile_ms(0.99, before=began), ledger.quantile_ms(0.99, after=began)
    loaded = promotions.done[0][1]  # the first one loads a version, the others find it loaded
    numbers = {
        **ledger.numbers(), "peak_per_s": round(peak, 1), "swaps": 2 * tier.swaps,
        "wrong": len(ledger.wrong), "wrong_examples": ledger.wrong[:3],
        "promote_s": [round(ended - begun, 1) for begun, ended, _ in promotions.done],
        "both_versions_answer_s": [round(one, 3) for one in mixed], "steady_p99_ms": steady_ms,
        "swapping_p99_ms": swap_ms,
        "loading_p99_ms": ledger.quantile_ms(0.99, after=began, before=loaded),
        "rss_growth": round(growth, 4),
        "versions_seen": sorted({one.version for one in ledger.records if one.version}),
    }  # fmt: skip
    claims = (
        none_failed("no call fails", ledger),
        none_of("answers that are not their version's", ledger.wrong),
        equals("versions that answered", numbers["versions_seen"], sorted(map(str, (first, second)))),
        at_most("both versions answer for, s", max(mixed), SWITCH_S),
        at_most("memory grows by the share", growth, 0.05),
        at_most("p99 while swapping, ms", swap_ms or 0, 2 * (steady_ms or 0)),
    )
    return Outcome(claims, numbers)


def _mixed_s(records: Sequence[Record], started: float, ended: float, new: str) -> float:
    """From the first answer of the new version to the last call that the old one still answered."""
    window = [one for one in records if started <= one.sent <= ended + SWITCH_S and one.version]
    first_new = min((one.done for one in window if one.version == new), default=ended)
    last_old = max((one.sent for one in window if one.version != new), default=first_new)
    return max(0.0, last_old - first_new)


BAD: dict[str, Callable[[Path], object]] = {
    "truncated": bad_candidates.truncated,
    "wrong classes": bad_candidates.wrong_classes,
    "NaN weights": bad_candidates.nan_weights,
    "wrong input shape": bad_candidates.wrong_input_shape,
    "a gate's number": bad_candidates.failed_gate,
    "accuracy never measured": bad_candidates.unchecked,
    "other answers": bad_candidates.other_answers,
    "external data": bad_candidates.external_data,
    "slow": bad_candidates.slow,
}


def bad_version(setting: Setting) -> Outcome:
    """18: candidates that must not be served are refused with a reason, while the old version answers."""
    repository, material = _two_versions(setting), setting.material
    (before,) = {serving_state(repository)}
    assert before is not None
    refused: dict[str, Any] = {}
    with setting.stack(repository, hurt=("models",)) as stack:
        with Load(stack, [[picture()]], rate=setting.tier.rate / 2) as load:
            for name, plant in BAD.items():
                bad = shutil.copytree(material.second, setting.folder / "candidates" / name)
                plant(bad / "export")
                speed = [] if name == "slow" else ["--max-slowdown", ANY_SPEED]
                refused[name] = _refusal(
                    "models", "publish", bad / "export", "--repository", repository, *speed
                )
            altered = max(published_versions(repository))
            model = next((repository / FRUIT_RESNET / str(altered)).glob("*.int8.onnx"))
            content = bytearray(model.read_bytes())
            content[len(content) // 2] ^= 1
            model.write_bytes(content)
            refused["altered after publishing"] = _refusal(
                "models", "promote", altered, "--repository", repository, "--control", stack.control
            )
        versions = {one.version for one in load.ledger.records if one.version}
    let_in = [name for name, one in refused.items() if one["exit"] != 1 or one["seconds"] > REFUSED_S]
    numbers = {
        **load.ledger.numbers(), "refused": refused, "let_in_or_late": let_in,
        "versions_seen": sorted(versions),
    }  # fmt: skip
    claims = (
        none_of("bad candidates let in, or refused late", let_in),
        equals("versions that answered", versions, {str(before.version)}),
        equals("what the repository serves", serving_state(repository), before),
        none_failed("no call fails", load.ledger),
    )
    return Outcome(claims, numbers)


def canary(setting: Setting) -> Outcome:
    """19: a version that is slower on its first server is taken back by itself."""
    repository, material = _two_versions(setting), setting.material
    before = serving_state(repository)
    assert before is not None
    bad = shutil.copytree(material.second, setting.folder / "slow")
    bad_candidates.slow(bad / "export")
    must("models", "publish", bad / "export", "--repository", repository, "--max-slowdown", ANY_SPEED)
    number = max(published_versions(repository))
    with (
        setting.stack(repository, hurt=("models",)) as stack,
        Load(stack, [[picture()]], rate=max(20.0, setting.tier.rate)) as load,
    ):
        time.sleep(setting.tier.steady_s)
        watched = ("--control", stack.control, "--watch-s", ROLLED_BACK_S)
        refused = _refusal("models", "promote", number, "--repository", repository, *watched)
        ended = time.monotonic()
        time.sleep(setting.tier.steady_s)
    records = load.ledger.records
    met = sum(one.version == str(number) for one in records) / len(records)
    after = {one.version for one in records if one.sent > ended and one.version}
    entry = json.loads((repository / "audit.jsonl").read_text().splitlines()[-1])
    numbers = {
        **load.ledger.numbers(), **refused, "share_that_met_it": round(met, 3),
        "versions_afterwards": sorted(after), "audit": {key: entry.get(key) for key in ("done", "reason")},
    }  # fmt: skip
    told = entry.get("done") is False and bool(entry.get("reason"))
    claims = (
        equals("exit status of the promotion", refused["exit"], 1),
        at_most("taken back after, s", refused["seconds"], ROLLED_BACK_S),
        equals("versions that answer afterwards", after, {str(before.version)}),
        Claim("the audit log says why", numbers["audit"], "done false, with a reason", told),
        Claim("some calls met it", met, "above 0", met > 0),
        at_most("calls that failed", load.ledger.failed, 0.005 * len(records)),
    )
    return Outcome(claims, numbers)


def _refusal(*words: object) -> dict[str, Any]:
    """How a command ended that should not succeed."""
    started = time.monotonic()
    done = run(*words)
    last = done.stderr.strip().splitlines()[-1:] or [""]
    return {
        "exit": done.returncode,
        "seconds": round(time.monotonic() - started, 1),
        "reason": last[0].partition("error: ")[2],
    }
