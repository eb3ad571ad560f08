"""Offline scoring: on two local Ray nodes, through kills, and against the online answers."""

import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from fruitstand.artefacts import sha256_file
from fruitstand.errors import ArtefactError
from fruitstand.images.synthetic import encode, pattern
from fruitstand.repository.versions import read_version
from fruitstand_client import Client
from scoring.model import pin_repository
from scoring.score import score
from serving.triton.embedded import EmbeddedServer
from tests.command import fruitstand
from tests.images import refused

DEADLINE_S = 600
NUM_IMAGES = int(os.environ.get("FRUITSTAND_SCORE_IMAGES", "1200"))
"""In the jobs that are killed."""
PARTITION_SIZE = max(8, NUM_IMAGES // 250)


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """Address of a Ray cluster of two nodes with one processor each."""
    pytest.importorskip("ray", reason="ray is not installed: pip install 'fruitstand[score]'")
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "object_store_memory": 80 * 2**20, "include_dashboard": False}
    running = Cluster(initialize_head=True, head_node_args=node)
    running.add_node(**{key: value for key, value in node.items() if key != "include_dashboard"})
    yield running.address
    running.shutdown()


@pytest.fixture(scope="module")
def many_images(test_images: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of many names for the images of the test split."""
    folder = tmp_path_factory.mktemp("many")
    for number in range(NUM_IMAGES):
        (folder / f"{number:05}.jpg").hardlink_to(test_images[number % len(test_images)])
    return folder


class _Seen(Exception):
    """Ends a job where it would begin to work."""


def test_this_process_alone_takes_all_processors(
    many_images: Path, repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker of several takes one each."""

    def worker(*_: object, num_threads: int, top_k: int) -> None:
        assert (num_threads, top_k) == (7, 2)
        raise _Seen

    monkeypatch.setattr("scoring.score.Worker", worker)
    monkeypatch.setattr("scoring.score.thread_budget", lambda: 7)
    with pytest.raises(_Seen):
        score(
            many_images, out=tmp_path, repository=repository, url=None, name=None, num_workers=0,
            partition_size=64, top_k=2, columns="image,path", address=None, trusted_keys=None, tls=None,
        )  # fmt: skip


def command(source: Path, out: Path, *arguments: object) -> list[str]:
    """The verb as a user calls it."""
    words = [sys.executable, "-m", "fruitstand", "score", source, "--out", out, "--json", *arguments]
    return [*map(str, words), "--partition-size", str(PARTITION_SIZE)]


def call(source: Path, out: Path, *arguments: object) -> "subprocess.CompletedProcess[str]":
    """Run the verb to its end: in a process of its own where it starts Ray or joins it."""
    words = command(source, out, *arguments)
    if "--workers" in words and words[words.index("--workers") + 1] == "0":
        return fruitstand(*words[3:])
    return subprocess.run(words, capture_output=True, text=True, timeout=DEADLINE_S, check=False)


def run(source: Path, out: Path, *arguments: object) -> dict:
    """Run the verb to its end; its result."""
    done = call(source, out, *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def rows(out: Path, table: str = "predictions") -> list[dict]:
    """A table of the job, in the order of the inputs."""
    files = sorted((out / table).glob("*.parquet"))
    return sorted(
        (row for file in files for row in pq.read_table(file).to_pylist()), key=lambda row: row["index"]
    )


def finished(out: Path) -> dict[str, tuple[int, int]]:
    """The partitions that are there, with what would change if one was written again."""
    return {
        path.name: (path.stat().st_ino, path.stat().st_mtime_ns)
        for path in (out / "predictions").glob("part-*.parquet")
    }


def wait(condition: Callable[[], object], process: subprocess.Popen) -> None:
    """Until something is so while a job runs."""
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert process.poll() is None, "the job ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.005)


def raylets(cluster: str) -> list[psutil.Process]:
    """The process of each node of the cluster at an address."""
    return [
        one
        for one in psutil.process_iter()
        if one.name() == "raylet" and any(cluster in word for word in one.cmdline())
    ]


def workers(nodes: list[psutil.Process]) -> list[psutil.Process]:
    """The processes in which our workers live."""
    found = []
    for child in (child for node in nodes for child in node.children()):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "MapWorker" in " ".join(child.cmdline()):
                found.append(child)
    return found


def both_work(nodes: list[psutil.Process]) -> bool:
    """Whether every node has a worker; the first is held until the last is there, or it does all the work."""
    pool = workers(nodes)
    all_there = {one.ppid() for one in pool} == {one.pid for one in nodes}
    for one in pool:
        one.resume() if all_there else one.suspend()
    return all_there


def test_offline_answers_are_the_online_ones(
    server: EmbeddedServer, repository: Path, test_images: list[Path], tmp_path: Path
) -> None:
    """In this process and through the server: the same labels, probabilities and reasons, image by image."""
    source = tmp_path / "source"
    source.mkdir()
    for number, path in enumerate(test_images):
        shutil.copyfile(path, source / f"{number:03}.jpg")
    for name, (content, _) in refused().items():
        (source / f"refused_{name}.jpg").write_bytes(content)
    files = sorted(source.iterdir())
    with Client(server.url) as client:
        online = list(client.classify(files))
    answered = {Path(one.path).name: one for one in online if one.error is None}
    result = run(source, tmp_path / "local", "--repository", repository, "--workers", 0)
    served = run(source, tmp_path / "served", "--url", server.url, "--workers", 0)
    counts = (len(answered), len(files) - len(answered))
    for out, outcome in ((tmp_path / "local", result), (tmp_path / "served", served)):
        assert (outcome["num_predictions"], outcome["num_errors"]) == counts
        offline = rows(out)
        assert [row["path"] for row in offline] == [path.name for path in files if path.name in answered]
        for row in offline:
            expected = answered[row["path"]]
            assert row["label"] == expected.label
            assert row["model_version"] == "1"
            np.testing.assert_allclose(
                [rank["probability"] for rank in row["top_k"]],
                [rank.probability for rank in expected.top_k],
                atol=1e-4,
            )
        reasons = {row["path"]: row["error"] for row in rows(out, "errors")}
        for name, (_, says) in refused().items():
            file = f"refused_{name}.jpg"
            assert file in answered or says in reasons[file]  # GIF, TIFF and others are converted
    labels = "\n".join(sorted(read_version(repository, 1).manifest["labels"]))
    pinned = {"version": "1", "url": server.url, "labels_sha256": hashlib.sha256(labels.encode()).hexdigest()}
    assert served["model"].items() >= pinned.items()
    manifest = repository / "fruit_resnet" / "1" / "manifest.json"
    assert {row["manifest_sha256"] for row in rows(tmp_path / "local")} == {sha256_file(manifest)}


def test_a_tar_and_a_parquet_file_score_as_their_images_do(
    repository: Path, test_images: list[Path], tmp_path: Path
) -> None:
    """Whatever the images came in."""
    images = test_images[:20]
    names = [f"{number:02}.jpg" for number in range(len(images))]
    folder, tars = tmp_path / "folder", tmp_path / "tars"
    folder.mkdir()
    tars.mkdir()
    with tarfile.open(tars / "shard.tar", "w") as archive:
        for name, path in zip(names, images, strict=True):
            shutil.copyfile(path, folder / name)
            archive.add(path, name)
    table = pa.table({"id": names, "jpg": [path.read_bytes() for path in images]})
    pq.write_table(table, tmp_path / "images.parquet", row_group_size=7)
    answers = []
    for source, more in ((folder, ()), (tars, ()), (tmp_path / "images.parquet", ("--columns", "jpg,id"))):
        out = tmp_path / f"out-{source.name}"
        run(source, out, "--repository", repository, "--workers", 0, *more)
        answers.append([(row["path"].removeprefix("shard.tar/"), row["top_k"]) for row in rows(out)])
    assert [name for name, _ in answers[0]] == names
    for name, ranks in answers[0]:
        for other in answers[1:]:
            assert [rank["label"] for rank in dict(other)[name]] == [rank["label"] for rank in ranks]


def test_two_nodes_score_every_image_once(
    cluster: str, repository: Path, test_images: list[Path], tmp_path: Path
) -> None:
    """With the labels that one process gives."""
    source = tmp_path / "source"
    source.mkdir()
    for number, path in enumerate(test_images):
        shutil.copyfile(path, source / f"{number:03}.jpg")
    run(source, tmp_path / "cluster", "--repository", repository, "--address", cluster)
    run(source, tmp_path / "alone", "--repository", repository, "--workers", 0)
    together, alone = (
        [(row["path"], row["label"]) for row in rows(tmp_path / name)] for name in ("cluster", "alone")
    )
    assert together == alone
    assert len(together) == len(test_images)


@pytest.mark.nightly
@pytest.mark.timeout(1200)
def test_a_killed_worker_and_a_killed_driver_lose_and_repeat_nothing(
    cluster: str, repository: Path, many_images: Path, tmp_path: Path
) -> None:
    """Ray replaces the worker, the rerun goes on; every input is there once, as one process says."""
    out = tmp_path / "out"
    arguments = ("--repository", repository, "--address", cluster)
    nodes = raylets(cluster)
    assert len(nodes) == 2
    driver = subprocess.Popen(command(many_images, out, *arguments), stdout=subprocess.DEVNULL)
    try:
        wait(lambda: both_work(nodes), driver)
        wait(lambda: len(finished(out)) >= 4, driver)
        killed, other = workers(nodes)
        other.suspend()  # it could end the job before Ray has replaced the killed one
        killed.kill()
        wait(lambda: len(workers(nodes)) == 2 and killed not in workers(nodes), driver)
        other.resume()
        before = len(finished(out))
        wait(lambda: len(finished(out)) >= before + 4, driver)
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
        for one in workers(nodes):
            one.resume()
    left_by_the_kill = finished(out)
    assert len(left_by_the_kill) < NUM_IMAGES // PARTITION_SIZE, "the kill came too late to show anything"
    result = run(many_images, out, *arguments)
    assert result["num_predictions"] == NUM_IMAGES
    assert result["num_scored_now"] <= NUM_IMAGES - PARTITION_SIZE * len(left_by_the_kill)
    after = finished(out)
    assert {name: after[name] for name in left_by_the_kill} == left_by_the_kill
    scored = rows(out)
    assert [row["index"] for row in scored] == list(range(NUM_IMAGES))
    assert [row["path"] for row in scored] == sorted(path.name for path in many_images.iterdir())
    alone = tmp_path / "alone"
    run(many_images, alone, "--repository", repository, "--workers", 0)
    assert [row["label"] for row in scored] == [row["label"] for row in rows(alone)]


@pytest.mark.nightly
@pytest.mark.timeout(1200)
def test_ray_on_this_machine_ends_with_its_driver(
    repository: Path, many_images: Path, tmp_path: Path
) -> None:
    """Kill -9 leaves no process; what was finished is not repeated, by whatever goes on."""
    pytest.importorskip("ray", reason="ray is not installed: pip install 'fruitstand[score]'")
    out = tmp_path / "out"
    arguments = ("--repository", repository, "--workers", 1)
    driver = subprocess.Popen(command(many_images, out, *arguments), stdout=subprocess.DEVNULL)
    try:
        wait(lambda: len(finished(out)) >= 2, driver)
        # Its two agents look for their parent now and then only; they do no work of ours.
        started = [
            one
            for one in psutil.Process(driver.pid).children(recursive=True)
            if "Agent" not in " ".join(one.cmdline())
        ]
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()
    assert len(started) >= 3  # raylet, gcs_server, and the worker
    _, alive = psutil.wait_procs(started, timeout=30)
    assert alive == []
    left_by_the_kill = finished(out)
    result = run(many_images, out, "--repository", repository, "--workers", 0)
    assert result["num_predictions"] == NUM_IMAGES
    assert result["num_scored_now"] == NUM_IMAGES - PARTITION_SIZE * len(left_by_the_kill) > 0


@pytest.mark.nightly
def test_uv_run_does_not_upload_the_working_directory(
    repository: Path, test_images: list[Path], tmp_path: Path
) -> None:
    """Ray refuses to upload more than 512 MiB, and without its hook for uv uploads nothing."""
    pytest.importorskip("ray", reason="ray is not installed: pip install 'fruitstand[score]'")
    uv = shutil.which("uv", path=f"{Path(sys.executable).parent}:{os.environ.get('PATH', '')}")
    if uv is None:
        pytest.skip("uv is not installed")
    source, checkout = tmp_path / "source", tmp_path / "checkout"
    source.mkdir()
    checkout.mkdir()
    shutil.copy(test_images[0], source)
    with (checkout / "large.bin").open("wb") as file:
        file.truncate(600 * 2**20)
    words = command(source, tmp_path / "out", "--repository", repository, "--workers", 1)
    done = subprocess.run(
        [uv, "run", "--no-project", *words],
        cwd=checkout, capture_output=True, text=True, timeout=DEADLINE_S, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["num_predictions"] == 1


def test_a_rerun_of_a_finished_job_scores_nothing(repository: Path, tmp_path: Path) -> None:
    """And one whose model or inputs changed is refused before it begins."""
    source, out = tmp_path / "source", tmp_path / "out"
    source.mkdir()
    (source / "a.png").write_bytes(encode(pattern(40, 40), "PNG"))
    arguments = ("--repository", repository, "--workers", 0)
    assert run(source, out, *arguments)["num_scored_now"] == 1
    assert run(source, out, *arguments)["num_scored_now"] == 0
    (source / "b.png").write_bytes(encode(pattern(41, 40), "PNG"))
    done = call(source, out, *arguments)
    assert done.returncode == 2
    assert "other inputs" in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1


def test_a_worker_refuses_what_was_not_pinned(repository: Path, tmp_path: Path) -> None:
    """A repository that changes between the start of the job and the start of a worker."""
    copy = shutil.copytree(repository, tmp_path / "copy")
    pinned = pin_repository(copy, None)
    pipeline = copy / "image_decode" / "1" / "dali.py"
    pipeline.write_text(pipeline.read_text() + "\n")
    with pytest.raises(ArtefactError, match=r"dali\.py: differs from the start"):
        pinned.open(num_threads=1, top_k=5)
    model = next(copy.glob("fruit_resnet/1/model.int8.onnx"))
    model.write_bytes(b"torn")
    with pytest.raises(ArtefactError, match="altered"):
        pin_repository(copy, None)


@pytest.mark.parametrize(
    ("arguments", "name", "says"),
    [
        pytest.param((), "out", "--repository or --url", id="no_model"),
        pytest.param(("--url", "x"), "source/out", "is inside", id="out_in_source"),
        pytest.param(("--repository", "nowhere"), "out", "no model repository", id="no_repository"),
        pytest.param(("--url", "127.0.0.1:9"), "out", "no server answers", id="no_server"),
        pytest.param(("--url", "x", "--columns", "image"), "out", "--columns", id="columns"),
    ],
)
def test_what_cannot_work_is_said_in_one_line(arguments: tuple, name: str, says: str, tmp_path: Path) -> None:
    """With no stack trace and nothing written."""
    source, out = tmp_path / "source", tmp_path / name
    source.mkdir()
    done = call(source, out, "--workers", 0, *arguments)
    assert done.returncode in (1, 2)
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert not out.exists()


def test_more_workers_than_processors_are_refused(cluster: str, repository: Path, tmp_path: Path) -> None:
    """Ray would wait for ever."""
    source = tmp_path / "a.png"
    source.write_bytes(encode(pattern(40, 40), "PNG"))
    arguments = ("--repository", repository, "--address", cluster, "--workers", 3)
    done = call(source, tmp_path / "out", *arguments)
    assert done.returncode == 2
    assert "Ray has 2; lower --workers" in done.stderr
