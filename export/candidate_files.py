"""Names inside a candidate: the folder in a run that export fills and publishing reads.

`candidate.json` is what makes the folder a candidate, and says whether it passed.
"""

CANDIDATE_FOLDER = "export"
"""In the run's folder."""
CANDIDATE_NAME = "candidate.json"
