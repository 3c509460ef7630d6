"""How often an MLO station comes up with all of its links: many associations of one phone with three links, in a guest.

    python benchmarks/association.py [COUNT]

Each time the phone leaves and joins again as the plan does it, once more after 5 s if a link is missing; then
a host behind the access point, which has forgotten it, must find it (a frame to a group address) and be answered.
Prints a line for each association that took more than one try, and the sum.
"""

from __future__ import annotations

import shlex
import sys
import tempfile
from pathlib import Path
from statistics import median
from uuid import uuid4

from testbed.drivers import wpa_supplicant
from testbed.machines.guest import command, image, microvm
from testbed.machines.guest.qemu import Share, Size

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = """
join() {{ {join}; }}
in_phone() {{ nsenter --net=/run/netns/phone "$@"; }}
for n in $(seq {count}); do
    begin=$(date +%s%3N); tries=0
    while [ $tries -lt 8 ]; do
        tries=$((tries + 1)); join >/dev/null; until=$(( $(date +%s) + 5 ))
        while [ "$(date +%s)" -lt $until ]; do
            if [ "$(in_phone iw dev wlan0 link | grep -c freq:)" = 3 ] &&
                in_phone wpa_cli -p {folder} -i wlan0 status | grep -q wpa_state=COMPLETED; then break 2; fi
        done
    done
    took=$(( $(date +%s%3N) - begin ))
    links=$(in_phone iw dev wlan0 link | grep -c freq:)
    ip neigh flush dev eth0
    lost=$(ping -4 -c 3 -i 0.2 -W 2 -q phone | grep -o '[0-9.]*% packet loss')
    echo "association $n $tries $took $links ${{lost%%%*}}"
done
"""


def main(count: int) -> int:
    """Join so many times; return 1 when any time a link was missing in the end, or a packet was lost."""
    made = image.find()
    if made is None:
        print("there is no image: `testbed image build` makes one")
        return 4
    told = wpa_supplicant.rejoin("phone", "wlan0")
    join = "; ".join(f"in_phone wpa_cli -p {c.folder} -i wlan0 raw {shlex.quote(c.command)}" for c in told)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        script = SCRIPT.format(join=join, count=count, folder=wpa_supplicant.folder("phone"))
        (folder / "join.sh").write_text(script)
        shares = {"code": Share(ROOT, "/testbed"), "results": Share(folder, "/results", True)}
        guest = microvm.start(made, Size(2, 2048), f"b{uuid4().hex[:8]}", shares)
        try:
            lab = "/testbed/topologies/mlo-three-link.yaml"
            status = command.call(guest, ("testbed", "up", lab, "--name", "many", "--machine", "here"))
            if status:
                return status
            words = ("testbed", "exec", "many", "server", "--", "sh", "-c", "sh /results/join.sh > /results/joined")
            command.call(guest, words)
        finally:
            microvm.stop(guest)
        rows = [
            row.split()[1:] for row in (folder / "joined").read_text().splitlines() if row.startswith("association")
        ]
    bad = [r for r in rows if r[3:] != ["3", "0"]]
    for row in rows:
        if row[1] != "1" or row in bad:
            print(f"association {row[0]}: {row[1]} tries, {int(row[2]) / 1000:.1f} s, {row[3]} links, {row[4]} % lost")
    first = sum(r[1] == "1" for r in rows)
    print(
        f"{len(rows)} associations: {len(rows) - len(bad)} with three links and no loss, {first} at the first try; "
        f"median {median(int(r[2]) for r in rows) / 1000:.2f} s"
    )
    return int(bool(bad) or len(rows) != count)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else 50))
