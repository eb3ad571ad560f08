"""TorchServe with batching, one worker: pack the archive, then start the server in the foreground."""

import os
import subprocess
import sys
from pathlib import Path

from classifier import MAX_BATCH_SIZE

if __name__ == "__main__":
    here, folder = Path(__file__).parent, Path(os.environ["SCRATCH"])
    ports = [os.environ[name] for name in ("PORT", "PORT_2", "PORT_3", "PORT_4", "PORT_5")]
    addresses = ("inference_address", "management_address", "metrics_address")
    config = [f"{name}=http://127.0.0.1:{port}" for name, port in zip(addresses, ports, strict=False)]
    config += [f"grpc_inference_port={ports[3]}", f"grpc_management_port={ports[4]}", "job_queue_size=1024"]
    (folder / "config.properties").write_text("\n".join(config))
    (folder / "model.yaml").write_text(
        f"minWorkers: 1\nmaxWorkers: 1\nbatchSize: {MAX_BATCH_SIZE}\nmaxBatchDelay: 2\nresponseTimeout: 60\n"
    )
    (folder / "store").mkdir()
    programs = Path(sys.executable).parent
    archiver = [programs / "torch-model-archiver", "--model-name", "fruit", "--version", "1"]
    archiver += ["--handler", here / "torchserve_handler.py", "--extra-files", here / "classifier.py"]
    archiver += ["--config-file", folder / "model.yaml", "--export-path", folder / "store"]
    subprocess.run(archiver, check=True)
    server = [str(programs / "torchserve"), "--start", "--foreground", "--disable-token-auth", "--ncs"]
    server += ["--model-store", str(folder / "store"), "--models", "fruit=fruit.mar"]
    os.chdir(folder)  # it writes its logs to the working directory
    os.execv(server[0], [*server, "--ts-config", str(folder / "config.properties")])
