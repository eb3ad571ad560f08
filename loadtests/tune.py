"""`fruitstand tune`: the settings that give the most images/s on this machine within a p99 budget.

Optuna proposes settings, each is written into a copy of the repository, served by `fruitstand serve` and loaded by
perf_analyzer. Its study lies in the output folder, so an interrupted search goes on. A search on a shared machine
finds luck as well as speed: at the end the best settings and the defaults are measured again, in turns, and the
best are kept only if they win every round.
"""

import csv
import json
import logging
import shutil
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import optuna

from fruitstand.artefacts import atomic_file, write_json
from fruitstand.cli_shared import print_json
from fruitstand.errors import ServerError, UsageError
from fruitstand.progress import track
from fruitstand.sources_of_images import read_images
from fruitstand.threads import thread_budget
from fruitstand.tuning import TUNING_NAME, Tuning, read_tuning
from loadtests.perf_analyzer import PerfAnalyzer, install_perf_analyzer, request_arguments, write_images
