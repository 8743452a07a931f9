#!/usr/bin/env python3
"""Checks a replay against its own decisions, without tierd: budgets, links and waiting times are worked out again.

    tierd replay TRACE --disk 10GB --ram 2GB --decisions moves.csv --json > report.json
    benches/replay/check.py --trace TRACE [--warm-up TRACE] --decisions moves.csv --report report.json

Needs Python 3.9 and nothing else. Exits with 1 and says what is wrong, if anything is.
"""

import argparse
import csv
import gzip
import heapq
import json
import sys
from collections import defaultdict

SLACK = 2e-5  # seconds: decisions are written in whole microseconds


def rows(path):
    opener = gzip.open if path.endswith(".gz") else open
    with opener(path, "rt", newline="") as text:
        yield from csv.DictReader(text)


class Checker:
    def __init__(self, report, rates):
        self.report = report
        self.rates = rates
        self.wrong = []
        self.held = {"ram": {}, "disk": {}}
        self.used = {"ram": 0, "disk": 0}
        self.peak = {"ram": 0, "disk": 0}
        self.carried = defaultdict(list)
        self.ends = defaultdict(list)
        self.ready = {}

    def claim(self, holds, text):
        if not holds and len(self.wrong) < 20:
            self.wrong.append(text)

    def leave(self, tier, model):
        self.used[tier] -= self.held[tier].pop(model, 0)

    def take(self, row):
        at, started = int(row["time_us"]) / 1e6, int(row["started_us"]) / 1e6
        tier, model, size = row["tier"], row["model"], int(row["bytes"])
        if row["event"] == "enter":
            self.claim(model not in self.held[tier], f"{at}: {model} enters {tier} twice")
            self.held[tier][model] = size
            self.used[tier] += size
            self.peak[tier] = max(self.peak[tier], self.used[tier])
            self.claim(self.used[tier] <= self.report[tier], f"{at}: {tier} holds {self.used[tier]} bytes")
        elif row["event"] == "leave":
            for one in ("ram", "disk") if tier == "origin" else (tier,):
                self.leave(one, model)
        elif row["event"] == "carried":
            self.carried[tier].append((started, at, size, row["reason"]))
            self.ends[model].append((started, at))
        elif row["event"] == "ready":
            self.ready[int(row["request_id"])] = (started, at, float(row["reason"]))

    def links(self):
        """Demands share a link evenly; with no prefetch on it, every end can be worked out."""
        for tier, transfers in self.carried.items():
            rate, size = self.rates[tier], sum(t[2] for t in transfers)
            span = self.union(transfers)
            self.claim(size <= rate * (span + SLACK * len(transfers)), f"{tier} carried {size} bytes in {span:.3f} s")
            if all(t[3] == "demand" for t in transfers) and self.report["gpus"] == 0:
                self.share(tier, rate, transfers)

    @staticmethod
    def union(transfers):
        total, until = 0.0, float("-inf")
        for started, at, _, _ in sorted(transfers):
            total += max(0.0, at - max(started, until))
            until = max(until, at)
        return total

    def share(self, tier, rate, transfers):
        wait = self.report.get("first_byte", 0.1) if tier == "origin" else 0.0
        arrivals = sorted((started + wait, at, size) for started, at, size, _ in transfers)
        now, carried, live, index = 0.0, 0.0, [], 0
        while live or index < len(arrivals):
            arrival = arrivals[index][0] if index < len(arrivals) else float("inf")
            end = now + max(0.0, live[0][0] - carried) * len(live) / rate if live else float("inf")
            upto = min(arrival, end)
            if live:
                carried += (upto - now) * rate / len(live)
            now = upto
            if end <= arrival:
                _, at = heapq.heappop(live)
                self.claim(abs(at - now) < 0.01, f"{tier}: a transfer ends at {at}, its share at {now:.6f}")
            else:
                _, at, size = arrivals[index]
                heapq.heappush(live, (carried + size, at))
                index += 1

    def requests(self, traces, warm_up):
        files, sizes, order = defaultdict(list), {}, []
        for path in warm_up + traces:
            for row in rows(path):
                request, key = int(row["request_id"]), row["model_key"]
                if request not in files:
                    order.append(request)
                if key not in files[request]:
                    files[request].append(key)
                sizes[key] = int(row["bytes"])
        skipped = len({int(row["request_id"]) for path in warm_up for row in rows(path)})
        by_key = {model.split("/", 1)[1]: ends for model, ends in self.ends.items()}
        stalls = []
        for place, request in enumerate(order):
            if request not in self.ready:
                self.claim(False, f"request {request} was never ready")
                continue
            started, at, stall = self.ready[request]
            alone = sum(sizes[key] for key in files[request]) / self.rates["ram"]
            self.claim(abs(max(0.0, at - started - alone) - stall) < SLACK, f"request {request} waited {stall} s")
            for key in files[request]:
                came = any(s <= at + SLACK and started - SLACK <= e <= at + SLACK for s, e in self.window(by_key[key], started, at))
                self.claim(came, f"request {request} is ready without {key}")
            if place >= skipped:
                stalls.append(stall)
        mean = sum(stalls) / len(stalls)
        self.claim(abs(mean - self.report["stall"]["mean"]) < 1e-5, f"mean {mean}, reported {self.report['stall']['mean']}")
        return mean, len(stalls)

    @staticmethod
    def window(ends, started, at):
        """Transfers of one file are logged in the order of their ends."""
        low, high = 0, len(ends)
        while low < high:
            middle = (low + high) // 2
            if ends[middle][1] < started - SLACK:
                low = middle + 1
            else:
                high = middle
        while low < len(ends) and ends[low][1] <= at + SLACK:
            yield ends[low]
            low += 1


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trace", nargs="+", required=True)
    parser.add_argument("--warm-up", nargs="*", default=[])
    parser.add_argument("--decisions", required=True)
    parser.add_argument("--report", required=True, help="what `tierd replay --json` printed")
    for link, rate in (("origin", 1e9), ("disk", 6e9), ("ram", 25e9)):
        parser.add_argument(f"--{link}-rate", type=float, default=rate, help="bytes a second")
    args = parser.parse_args()
    with open(args.report) as text:
        report = json.load(text)
    checker = Checker(report, {"origin": args.origin_rate, "disk": args.disk_rate, "ram": args.ram_rate})
    for row in rows(args.decisions):
        checker.take(row)
    checker.links()
    mean, count = checker.requests(args.trace, args.warm_up)
    for text in checker.wrong:
        print("wrong:", text)
    print(
        f"{count} requests wait {mean:.3f} s on average; RAM held at most {checker.peak['ram']} of {report['ram']} bytes, "
        f"the disk {checker.peak['disk']} of {report['disk']}"
    )
    sys.exit(bool(checker.wrong))


if __name__ == "__main__":
    main()
