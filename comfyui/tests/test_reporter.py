# SPDX-License-Identifier: Apache-2.0
"""Reports: in order, bounded, dropped with a count, and taken up again whatever becomes of the daemon."""

import os
import unittest

from case import Case
from tierd import reporter, wire


class Telling(Case):
    def test_a_prompt_is_told_from_queue_to_end(self):
        tierd = self.tierd()
        self.pack(tierd)
        path = self.file("vae/a.safetensors", 77)
        self.modules["execution"].PromptQueue().put((0, "p1", {}, {}, []))
        self.run_prompt(lambda: self.model(path))
        tierd.wait_event("prompt_ended")
        events = [event for call in tierd.wait_path("/report") for event in call["body"]["events"]]
        self.assertEqual([event["kind"] for event in events], ["prompt_queued", "prompt_started", "file_read", "prompt_ended"])
        self.assertEqual({event["prompt_id"] for event in events}, {"p1"})
        read = events[2]
        self.assertEqual((read["file"], read["bytes"], read["seconds"] >= 0), (path, 77, True))
        self.assertEqual(events[3]["ok"], True)
        self.assertTrue(all(isinstance(event["at"], int) for event in events))

    def test_a_prompt_that_failed_or_was_interrupted_did_not_end_well(self):
        tierd = self.tierd()
        self.pack(tierd)
        executor = self.modules["execution"].PromptExecutor()
        executor.success = False
        executor.execute(prompt=[lambda: 1], prompt_id="p2")
        ended = tierd.wait_event("prompt_ended")[0]
        self.assertEqual((ended["prompt_id"], ended["ok"]), ("p2", False))

    def test_a_file_that_could_not_be_read_was_not_read(self):
        tierd = self.tierd()
        pack = self.pack(tierd)
        with self.assertRaises(ValueError):
            self.modules["comfy.utils"].load_torch_file("/no/such/file")
        pack.reporter.event("prompt_queued", prompt_id="after")
        tierd.wait_event("prompt_queued")
        self.assertFalse([event for call in tierd.calls for event in call["body"].get("events", []) if event["kind"] == "file_read"])

    def test_without_news_the_worker_still_says_that_it_lives(self):
        tierd = self.tierd()
        self.pack(tierd)
        reports = tierd.wait_path("/report", 3)
        self.assertEqual([call["body"]["seq"] for call in reports[:3]], [1, 2, 3])
        self.assertNotIn("devices", reports[0]["body"], "nothing was looked at yet: unchanged, not empty")


class Bounded(Case):
    def test_what_does_not_fit_into_the_queue_is_dropped_and_counted(self):
        tierd = self.tierd()
        tierd.stop()
        pack = self.pack(tierd)
        for number in range(reporter.EVENTS_MAX + reporter.EVENTS_PER_REPORT_MAX + 500):
            pack.reporter.event("prompt_queued", prompt_id=str(number))
        held = len(pack.reporter._events) + len(pack.reporter._batch)
        self.assertLessEqual(held, reporter.EVENTS_MAX + reporter.EVENTS_PER_REPORT_MAX)
        self.assertGreaterEqual(pack.reporter.dropped, 500)
        with self.assertLogs("tierd", "WARNING") as logs:
            tierd.start()
            tierd.wait(lambda call: call["body"].get("dropped_events"))
            tierd.wait_path("/report", reporter.EVENTS_MAX // reporter.EVENTS_PER_REPORT_MAX)
            pack.reporter.stop()
        self.assertTrue(any("events were dropped" in line for line in logs.output), logs.output)

    def test_a_report_has_at_most_256_events_and_one_megabyte(self):
        tierd = self.tierd()
        tierd.stop()
        pack = self.pack(tierd)
        for number in range(600):
            pack.reporter.event("file_read", file="/" + "x" * 6000 + str(number), seconds=0.1)
        tierd.start()
        reads = tierd.wait_event("file_read", 600)
        self.assertEqual([read["file"].strip("/x") for read in reads], [str(number) for number in range(600)], "none lost, none twice, in order")
        for call in tierd.wait_path("/report"):
            self.assertLessEqual(len(call["body"]["events"]), reporter.EVENTS_PER_REPORT_MAX)
            self.assertLessEqual(int(call["headers"]["Content-Length"]), reporter.REPORT_BYTES_MAX)


class WhateverBecomesOfTheDaemon(Case):
    def test_a_daemon_that_was_restarted_gets_hello_again_and_the_report_after_it(self):
        tierd = self.tierd()
        pack = self.pack(tierd)
        tierd.wait_path("/report")
        tierd.restart()
        pack.reporter.event("prompt_queued", prompt_id="kept")
        tierd.wait(lambda call: call["path"].endswith("/report") and call["status"] == 404)
        tierd.wait_path("/hello", 2)
        self.assertEqual([event["prompt_id"] for event in tierd.wait_event("prompt_queued")], ["kept"])

    def test_a_daemon_that_comes_late_is_found(self):
        tierd = self.tierd()
        tierd.stop()
        with self.assertLogs("tierd", "INFO") as logs:
            pack = self.pack(tierd)
            pack.reporter.event("prompt_queued", prompt_id="early")
            tierd.start()
            tierd.wait_event("prompt_queued")
        said = "\n".join(logs.output)
        self.assertIn("10 of 10 hooks attached", said)
        self.assertLessEqual(said.count("no daemon answers"), 1)

    def test_a_busy_daemon_gets_the_same_report_later(self):
        tierd = self.tierd()
        pack = self.pack(tierd)
        tierd.wait_path("/report")
        tierd.status["report"] = 503
        pack.reporter.event("prompt_queued", prompt_id="kept")
        tierd.wait(lambda call: call["status"] == 503)
        del tierd.status["report"]
        self.assertEqual(len(tierd.wait_event("prompt_queued")), 1)

    def test_a_report_that_is_refused_is_not_sent_for_ever(self):
        tierd = self.tierd()
        pack = self.pack(tierd)
        tierd.wait_path("/report")
        tierd.status["report"] = 400
        with self.assertLogs("tierd", "WARNING") as logs:
            pack.reporter.event("prompt_queued", prompt_id="refused")
            tierd.wait(lambda call: call["status"] == 400, 2)
            del tierd.status["report"]
            pack.reporter.event("prompt_queued", prompt_id="next")
            self.assertEqual([event["prompt_id"] for event in tierd.wait_event("prompt_queued")], ["next"])
        self.assertEqual(len([line for line in logs.output if "refuses the report: HTTP 400 told to refuse" in line]), 1)
        self.assertEqual(pack.reporter.dropped, 1)

    def test_hello_is_said_again_every_minute(self):
        tierd = self.tierd()
        now = [1000.0]
        pack = self.pack(tierd)
        tierd.wait_path("/report")
        pack.reporter._clock = lambda: now[0]
        pack.reporter._hello_at = now[0]
        tierd.wait_path("/report", 3)
        self.assertEqual(len(tierd.wait_path("/hello")), 1)
        now[0] += reporter.HELLO_INTERVAL_S
        tierd.wait_path("/hello", 2)

    def test_the_list_of_absent_models_is_asked_for_only_when_it_changed(self):
        tierd = self.tierd()
        tierd.absent = ["vae/a.safetensors", 'vae/odd "näme".safetensors']
        pack = self.pack(tierd)
        tierd.wait(lambda call: call["path"].endswith("/absent") and call["status"] == 200)
        tierd.wait_path("/report", 3)
        pack.reporter._absent_at = None
        tierd.wait(lambda call: call["path"].endswith("/absent") and call["status"] == 304)
        gate = pack.reporter.gate
        self.assertTrue(all(map(gate.is_absent, tierd.absent)))
        self.assertFalse(gate.is_absent("a.safetensors"))
        self.assertFalse(gate.is_absent("models"[:3]))

    def test_a_daemon_without_such_a_list_still_gets_reports(self):
        tierd = self.tierd()
        tierd.status["absent"] = 404
        self.pack(tierd)
        tierd.wait_path("/absent")
        tierd.wait_path("/report", 3)


class OverTcp(Case):
    def test_a_token_goes_with_every_call_and_is_never_said(self):
        tierd = self.tierd(tcp=True)
        file = os.path.join(self.folder, "token")
        with open(file, "w", encoding="utf-8") as written:
            written.write("s3cret\n")
        with self.assertLogs("tierd", "INFO") as logs:
            self.pack(tierd.environ(TIERD_TOKEN_FILE=file))
            calls = tierd.wait_path("/report", 2)
            with open(file, "w", encoding="utf-8") as written:
                written.write("an0ther")
            tierd.wait(lambda call: call["headers"].get("Authorization") == "Bearer an0ther")
        self.assertEqual({call["headers"].get("Authorization") for call in calls[:1]}, {"Bearer s3cret"})
        self.assertNotIn("s3cret", "\n".join(logs.output))

    def test_a_token_file_that_is_missing_is_a_daemon_that_does_not_answer(self):
        tierd = self.tierd(tcp=True)
        with self.assertLogs("tierd", "INFO") as logs:
            pack = self.pack(tierd.environ(TIERD_TOKEN_FILE=os.path.join(self.folder, "no")))
            pack.reporter.turn()
        self.assertIn("TIERD_TOKEN_FILE cannot be read: No such file or directory", "\n".join(logs.output))

    def test_the_token_stays_at_home_on_the_unix_socket(self):
        tierd = self.tierd()
        self.pack(tierd.environ(TIERD_TOKEN="s3cret"))
        self.assertNotIn("Authorization", tierd.wait_path("/hello")[0]["headers"])


class FromTheEnvironment(Case):
    def test_settings(self):
        self.assertEqual(wire.Settings({}).where(), "/run/tierd/tierd.sock")
        self.assertTrue(wire.Settings({}).gate)
        self.assertFalse(wire.Settings({"TIERD_GATE": "0"}).gate)
        for address in ("http://127.0.0.1:7878", "http://localhost:1", "http://[::1]:7878"):
            self.assertEqual(wire.Settings({"TIERD_ADDRESS": address}).problem, "", address)
        for address in ("https://127.0.0.1:1", "127.0.0.1:1", "http://127.0.0.1", "http://127.0.0.1:x", "http://192.168.1.1:80", "http://tierd:80"):
            self.assertIn("TIERD_ADDRESS", wire.Settings({"TIERD_ADDRESS": address}).problem, address)

    def test_a_connection_that_the_daemon_closed_while_idle_is_opened_again(self):
        tierd = self.tierd()
        daemon = wire.Daemon(wire.Settings(tierd.environ()))
        self.addCleanup(daemon.close)
        self.assertEqual(daemon.call("GET", "/comfy/v1/absent")[0], 200)
        tierd.restart()
        self.assertEqual(daemon.call("GET", "/comfy/v1/absent")[0], 200)

    def test_an_answer_without_end_is_cut_off(self):
        tierd = self.tierd()
        tierd.absent = ["x" * 1000]
        daemon = wire.Daemon(wire.Settings(tierd.environ()))
        self.addCleanup(daemon.close)
        limit, wire.ANSWER_BYTES_MAX = wire.ANSWER_BYTES_MAX, 500
        self.addCleanup(setattr, wire, "ANSWER_BYTES_MAX", limit)
        with self.assertRaisesRegex(wire.Unreachable, "more than 500 bytes"):
            daemon.call("GET", "/comfy/v1/absent")


if __name__ == "__main__":
    unittest.main()
