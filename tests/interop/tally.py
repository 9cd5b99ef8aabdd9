"""Counts checks: a line for each, and the counts at the end."""

import sys
import traceback


class Tally:
    def __init__(self):
        self.passed = 0
        self.failed = 0

    def check(self, words, holds, seen=None):
        """Counts one check. `seen` is printed if the check fails."""
        if holds:
            self.passed += 1
            print(f"PASS  {words}", flush=True)
        else:
            self.failed += 1
            print(f"FAIL  {words}" + ("" if seen is None else f": saw {seen!r}"), flush=True)

    def equal(self, words, seen, wanted):
        self.check(words, seen == wanted, seen)

    def raises(self, words, kind, call):
        """Passes if `call` raises exactly `kind`."""
        try:
            answer = call()
        except Exception as error:  # what came instead is shown
            self.check(words, type(error) is kind, error)
        else:
            self.check(words, False, answer)

    def finish(self):
        print(f"{self.passed} passed, {self.failed} failed", flush=True)
        sys.exit(0 if self.failed == 0 and self.passed > 0 else 1)

    def run(self, story):
        """Runs the checks. An unexpected error counts as one more failed check."""
        try:
            story(self)
        except Exception as error:
            traceback.print_exc()
            self.check("all checks were run", False, error)
        self.finish()
