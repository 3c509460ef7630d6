"""Write the series of a metric as CSV: series.py results/NAME/latest METRIC."""

import json
import sys
from pathlib import Path

folder, metric = sys.argv[1:]
found = json.loads(Path(folder, "metrics.json").read_text())[metric]
rows = [("time_s", metric), *found["series"]]
sys.stdout.write("".join(f"{at},{value}\n" for at, value in rows))
