"""The dashboards, one a module, as data."""

from monitoring.boards.drift import DRIFT
from monitoring.boards.gateway import GATEWAY
from monitoring.boards.hardware import HARDWARE
from monitoring.boards.objectives import OBJECTIVES
from monitoring.boards.serving import SERVING

BOARDS = (SERVING, GATEWAY, HARDWARE, OBJECTIVES, DRIFT)
