"""F. Security: who may do what, and what is never let in, served or shown."""

import json
import shutil
import socket
import ssl
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc

from fruitstand.contract import API_KEY_HEADER, FRUIT_RESNET
from fruitstand.network.connections import open_channel
from fruitstand.network.tls import Tls
from fruitstand.repository.versions import published_versions
from fruitstand_client import Client, RequestFailed
from tests.nightly.chaos.authority import Certificate, make_certificate
from tests.nightly.chaos.commands import must, run
from tests.nightly.chaos.control_calls import grpc_outcomes, grpc_paths, http_calls, http_outcomes
from tests.nightly.chaos.load import Load
from tests.nightly.chaos.pictures import picture
from tests.nightly.chaos.setting import (
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

CHECKOUT = Path(__file__).parents[4]
REFUSALS = ("PERMISSION_DENIED", "UNIMPLEMENTED")
MIN_VARIANTS = 200
PROMPT_MS = 10.0
SEEN_S = 5.0


def control_refused(setting: Setting) -> Outcome:
    """25: control is refused by the gateway, and by the servers behind it; inference works."""
    let_in: list[dict[str, Any]] = []
    counts = {"gateway": 0, "servers": 0}
    with setting.stack() as stack:
        for path, status, words in grpc_outcomes(stack.url, grpc_paths()):
            counts["gateway"] += 1
            if status not in REFUSALS:
                let_in.append({"layer": "gateway", "path": path, "status": status, "words": words[:80]})
        for call, code in http_outcomes(stack.url, http_calls(of_gateway=True)):
            counts["gateway"] += 1
            if 200 <= code < 300:
                let_in.append({"layer": "gateway", "call": call, "status": code})
        one = stack.ready["replicas"][0]
        for path, status, words in grpc_outcomes(one["grpc"], grpc_paths()):
            counts["servers"] += 1
            # An empty body is an error too, of a call that was let in.
            if status not in REFUSALS and "restricted" not in words:
                let_in.append({"layer": "server", "path": path, "status": status, "words": words[:80]})
        server = one["http"].removeprefix("http://")
        for call, code in http_outcomes(server, http_calls(of_gateway=False)):
            counts["servers"] += 1
            if 200 <= code < 300:
                let_in.append({"layer": "server", "call": call, "status": code})
        with Client(stack.url) as client:
            works = client.classify([picture()])[0].failure is None
        stack.answered += 1
    numbers = {"variants": counts, "let_in": let_in, "inference_works": works}
    claims = (
        none_of("control calls let in", let_in),
        Claim("inference works", works, "True", works),
        at_least("ways tried at each layer", min(counts.values()), MIN_VARIANTS),
    )
    return Outcome(claims, numbers)


def certificates(setting: Setting) -> Outcome:
    """26: clear text, old TLS and bad certificates are refused; a rotation under load costs nothing."""
    access, pems = setting.folder / "access", setting.folder / "pems"
    for folder in (access, pems):
        folder.mkdir(parents=True)
    ours, theirs = make_certificate("ours"), make_certificate("theirs")
    _install(access, make_certificate("localhost", ours))
    ours.write(access / "clients.crt")
    ca, other_ca = ours.write(pems / "ca.crt"), theirs.write(pems / "other.crt")

    def tls(name: str, signed_by: Certificate, *, days: tuple[int, int] = (-1, 1), trusts: Path = ca) -> Tls:
        made = make_certificate(name, signed_by, days=days)
        certificate = made.write(pems / f"{name}.crt", with_key=True)
        (pems / f"{name}.key").write_bytes(made.key_pem)
        return Tls(ca=trusts, certificate=certificate, key=pems / f"{name}.key", server_name="localhost")

    good = tls("good", ours)
    bad = {
        "no TLS": None,
        "no certificate": Tls(ca=ca, server_name="localhost"),
        "of another CA": tls("stranger", theirs),
        "expired": tls("expired", ours, days=(-3, -1)),
        "not yet valid": tls("early", ours, days=(1, 3)),
        "trusts another CA": tls("doubter", ours, trusts=other_ca),
        "expects another name": replace(good, server_name="other.example"),
    }
    with setting.stack(access=access) as stack:
        outcomes = {name: _asked(stack, one) for name, one in bad.items()}
        outcomes["TLS 1.1"] = _old_protocol(stack.url)
        stack.tls = good
        first = _served_certificate(stack.url, good)
        with Load(stack, [[picture()]], rate=setting.tier.rate) as load:
            time.sleep(2)
            _install(access, make_certificate("localhost", ours))
            rotated, seen_s = time.monotonic(), None
            while seen_s is None and time.monotonic() - rotated < 2 * SEEN_S:
                time.sleep(0.1)
                if _served_certificate(stack.url, good) != first:
                    seen_s = time.monotonic() - rotated
            time.sleep(2)
        _install(access, make_certificate("localhost", ours, days=(-3, -1)))
        time.sleep(2)
        outcomes["the server's has expired"] = _asked(stack, good)
    let_in = [name for name, refused in outcomes.items() if not refused]
    numbers = {
        **load.ledger.numbers(), "refused": outcomes, "let_in": let_in,
        "new_certificate_seen_s": seen_s and round(seen_s, 2),
    }  # fmt: skip
    claims = (
        none_of("bad connections let in", let_in),
        none_failed("no call fails during the rotation", load.ledger),
        at_most("the new certificate is seen after, s", seen_s, SEEN_S),
    )
    return Outcome(claims, numbers)


def _install(access: Path, server: Certificate) -> None:
    server.write(access / "server.crt")
    (access / "server.key").write_bytes(server.key_pem)


def _asked(stack: Stack, tls: Tls | None) -> str:
    """Why a call is refused; empty when it is answered."""
    with Client(stack.url, tls=tls, deadline_s=5) as client:
        try:
            client.classify_batch([picture()])
        except RequestFailed as exc:
            return f"{exc.status}: {str(exc)[-60:]}"
    stack.answered += 1
    return ""


def _context(tls: Tls) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=str(tls.ca))
    context.load_cert_chain(str(tls.certificate), str(tls.key))
    context.set_alpn_protocols(["h2"])
    return context


def _served_certificate(url: str, tls: Tls) -> bytes | None:
    host, _, port = url.rpartition(":")
    with (
        socket.create_connection((host, int(port)), 5) as plain,
        _context(tls).wrap_socket(plain, server_hostname="localhost") as wrapped,
    ):
        return wrapped.getpeercert(binary_form=True)


def _old_protocol(url: str) -> str:
    """Why a handshake of TLS 1.1 fails; empty when it does not."""
    import warnings

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    host, _, port = url.rpartition(":")
    try:
        with socket.create_connection((host, int(port)), 5) as plain, context.wrap_socket(plain):
            return ""
    except OSError as exc:
        return str(exc)[:80]


def api_keys(setting: Setting) -> Outcome:
    """27: bad keys are refused at once, a rotation costs nothing, and no key is ever shown."""
    file = setting.folder / "access" / "api_keys.json"
    secrets = {name: must("keys", "add", name, "--file", file).strip() for name in ("old", "off", "late")}
    must("keys", "disable", "off", "--file", file)
    listed = json.loads(file.read_text())
    listed["keys"][2]["expires"] = (datetime.now(UTC) - timedelta(days=1)).isoformat()
    file.write_text(json.dumps(listed))
    with setting.stack(access=file.parent) as stack:
        stack.api_key, stack.secrets = secrets["old"], list(secrets.values())
        bad = {"none": None, "wrong": "x" * 43, "disabled": secrets["off"], "expired": secrets["late"]}
        outcomes = {name: _refused_key(stack.url, key) for name, key in bad.items()}
        with Load(stack, [[picture()]], rate=setting.tier.rate / 2) as load:
            new = must("keys", "add", "new", "--file", file).strip()
            stack.secrets.append(new)
            time.sleep(2)
            with Load(stack, [[picture()]], rate=setting.tier.rate / 2, api_key=new) as after:
                time.sleep(2)
        must("keys", "disable", "old", "--file", file)
        time.sleep(2)
        outcomes["rotated out"] = _refused_key(stack.url, secrets["old"])
        shown = [name for name, key in {**secrets, "new": new}.items() if key in stack.page()]
    let_in = [name for name, one in outcomes.items() if one["status"] != "UNAUTHENTICATED"]
    slow = [name for name, one in outcomes.items() if one["p50_ms"] > PROMPT_MS]
    numbers = {
        "outcomes": outcomes, "let_in": let_in, "slow": slow, "in_metrics": shown,
        "before": load.ledger.numbers(), "after": after.ledger.numbers(),
    }  # fmt: skip
    claims = (
        none_of("bad keys let in", let_in),
        none_of(f"bad keys refused later than {PROMPT_MS:g} ms", slow),
        none_of("keys on the metrics page", shown),
        none_failed("no call fails with the old key", load.ledger),
        none_failed("no call fails with the new key", after.ledger),
    )
    return Outcome(claims, numbers)


def _refused_key(url: str, key: str | None) -> dict[str, Any]:
    """How a call with a key ends, and how fast."""
    taken, status = [], "OK"
    with open_channel(url) as channel:
        grpc.channel_ready_future(channel).result(5)
        for _ in range(21):
            started = time.monotonic()
            try:
                metadata = [(API_KEY_HEADER, key)] if key else None
                channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")(
                    b"", timeout=5, metadata=metadata
                )
            except grpc.RpcError as exc:
                status = exc.code().name
            taken.append((time.monotonic() - started) * 1e3)
    return {"status": status, "p50_ms": round(sorted(taken)[len(taken) // 2], 2)}


def least_privilege(setting: Setting) -> Outcome:
    """28: unsigned, altered or foreign models are not served; images are pinned, read-only and not root."""
    trusted = setting.folder / "trusted"
    trusted.mkdir(parents=True)
    must("models", "keygen", setting.folder / "ours")
    shutil.copy(setting.folder / "ours.pub", trusted)
    refused = {"unsigned": _start_refused(setting.copy(setting.repository, "unsigned"), trusted)}
    for name, plant in (("pickle beside the model", _pickle), ("altered manifest", _alter)):
        repository = setting.copy(setting.repository, name.replace(" ", "-"))
        plant(repository / FRUIT_RESNET / str(published_versions(repository)[0]))
        refused[name] = _start_refused(repository, None)
    marker = setting.folder / "executed"
    evil = setting.copy(setting.repository, "foreign")
    _foreign_model(evil, marker)
    with setting.stack(evil, replicas=1) as stack, Client(stack.url) as client:
        works = client.classify([picture()])[0].failure is None
        stack.answered += 1
    facts = _deployed()
    let_in = [name for name, reason in refused.items() if not reason]
    numbers = {
        "refused": refused, "let_in": let_in, "foreign_model_executed": marker.exists(), "works": works,
        "deployed": facts,
    }  # fmt: skip
    claims = (
        none_of("bad repositories served", let_in),
        equals("the foreign model's code has run", marker.exists(), False),
        Claim("inference works beside it", works, "True", works),
        *(Claim(fact, is_so, "True", is_so) for fact, is_so in facts.items()),
    )
    return Outcome(claims, numbers)


def _start_refused(repository: Path, trusted: Path | None) -> str:
    """Why `fruitstand serve` does not start; empty when it does."""
    keys = ["--trusted-keys", trusted] if trusted else []
    ports = ["--grpc-port", 0, "--http-port", 0, "--metrics-port", 0]
    done = run("serve", "--repository", repository, *ports, *keys, timeout_s=90)
    return "" if done.returncode != 1 else done.stderr.strip().splitlines()[-1].partition("error: ")[2]


def _pickle(version: Path) -> None:
    (version / "model.pkl").write_bytes(b"\x80\x04cos\nsystem\n.")


def _alter(version: Path) -> None:
    manifest = version / "manifest.json"
    document = json.loads(manifest.read_text())
    next(iter(document["files"].values()))["sha256"] = "0" * 64
    manifest.write_text(json.dumps(document))


def _foreign_model(repository: Path, marker: Path) -> None:
    """A model whose code would run, were it loaded."""
    version = repository / "foreign" / "1"
    version.mkdir(parents=True)
    (version / "model.py").write_text(f"open({str(marker)!r}, 'w')\n\nclass TritonPythonModel:\n    pass\n")
    (version.parent / "config.pbtxt").write_text('name: "foreign"\nbackend: "python"\nmax_batch_size: 1\n')


def _deployed() -> dict[str, bool]:
    """What compose and Kubernetes say of the containers."""
    compose = (CHECKOUT / "docker-compose.yml").read_text()
    pods = (CHECKOUT / "deploy" / "kubernetes" / "base" / "triton.yaml").read_text()
    return {
        "compose: read-only root": "read_only: true" in compose,
        "compose: no capabilities": "cap_drop: [ALL]" in compose,
        "Kubernetes: not root": "runAsNonRoot: true" in pods,
        "Kubernetes: read-only root": "readOnlyRootFilesystem: true" in pods,
    }  # fmt: skip
