"""TorchServe with batching: pack the archives, then start the server in the foreground.

The second archive is the same model with another version, for a swap through the management API.
"""

import os
import subprocess
import sys
from pathlib import Path

from classifier import MAX_BATCH_SIZE, peer_settings

if __name__ == "__main__":
    here, folder, settings = Path(__file__).parent, Path(os.environ["SCRATCH"]), peer_settings()
    ports = [os.environ[name] for name in ("PORT", "PORT_2", "PORT_3", "PORT_4", "PORT_5")]
    addresses = ("inference_address", "management_address", "metrics_address")
    config = [f"{name}=http://127.0.0.1:{port}" for name, port in zip(addresses, ports, strict=False)]
    config += [f"grpc_inference_port={ports[3]}", f"grpc_management_port={ports[4]}"]
    config += [f"job_queue_size={settings['queue']}", "enable_model_api=true"]
    (folder / "config.properties").write_text("\n".join(config))
    (folder / "model.yaml").write_text(
        f"minWorkers: {settings['workers']}\nmaxWorkers: {settings['workers']}\nbatchSize: {MAX_BATCH_SIZE}\n"
        f"maxBatchDelay: 2\nresponseTimeout: {settings['timeout_s']}\n"
    )
    (folder / "store").mkdir()
    programs = Path(sys.executable).parent
    for name, version in (("fruit", "1.0"), ("fruit2", "2.0")):
        archiver = [programs / "torch-model-archiver", "--model-name", name, "--version", version]
        archiver += ["--handler", here / "torchserve_handler.py", "--extra-files", here / "classifier.py"]
        archiver += ["--config-file", folder / "model.yaml", "--export-path", folder / "store"]
        subprocess.run(archiver, check=True)
    server = [str(programs / "torchserve"), "--start", "--foreground", "--disable-token-auth", "--ncs"]
    server += ["--model-store", str(folder / "store"), "--models", "fruit=fruit.mar"]
    os.chdir(folder)  # it writes its logs to the working directory
    os.execv(server[0], [*server, "--ts-config", str(folder / "config.properties")])
