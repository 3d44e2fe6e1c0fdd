# tests/tidy.py - the rules of style that a machine can check; see tests/CMakeLists.txt.
"""Usage: tidy.py SOURCE_DIR.  Prints every offence as file:line: what was found and what is allowed."""
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOMS = ["actors", "cli", "kernels", "proto", "runtime", "tests"]
LINE_MAX, DEF_LINE_MAX, FILE_MAX, FUNCTION_MAX = 100, 240, 800, 70

# Tests and fused kernels may be longer where they say why: "long: reason" in the comment above.
LONG = re.compile(r"\blong: \S+")

BANNED = {
    r"\b(strcpy|strcat|sprintf|vsprintf|gets|strtok|alloca)\s*\(": "unbounded or stateful call",
    r"(?<!actor_)\b(rand|srand|random|srandom)\s*\(\s*\)": "randomness without a seed of ours",
    r"\b(system|popen)\s*\(": "a shell",
}
# Time and sleep belong to the real world, to engines (the only code that may block) and to tools.
CLOCK = re.compile(r"(?<![\w.>])(time|gettimeofday|sleep|usleep|nanosleep)\s*\(")
CLOCK_ROOMS = ("runtime/zmq/", "runtime/net/", "runtime/engine/", "runtime/ep/", "cli/", "tests/", "kernels/bench")
ACTOR_WORDS = re.compile(
    r"\b(pthread_\w+|mtx_\w+|_Atomic|atomic_\w+|stdatomic|socket|zmq_\w+|zsock_\w+|malloc|calloc|realloc|free|"
    r"clock_gettime|getenv|fopen|open|read|write|printf|fprintf)\s*\(|#include <(pthread|stdatomic|sys/\w+|unistd|time)\.h>")
ACTOR_GLOBAL = re.compile(r"^(static )?(?!const\b|extern\b|typedef\b|enum\b|return\b)(struct )?\w+ \**\w+(\[[^]]*\])*( =.*|;)$")
TODO = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
UNDERSCORE = re.compile(r"^(?:[a-z]\w*[ *]+)+(_[a-z]\w*)\s*[(=;\[]|^#define (_[a-z]\w*)")


class Tidy:
    def __init__(self, root):
        self.root = Path(root)
        self.offences = []

    def offend(self, path, line, text):
        self.offences.append(f"{path}:{line}: {text}")

    def files(self):
        """Tracked sources, or all of them where there is no git."""
        found = []
        for room in ROOMS:
            for path in sorted((self.root / room).rglob("*")):
                if path.suffix in (".c", ".h", ".def", ".cu", ".cuh", ".cc") and "build" not in path.parts:
                    found.append(path.relative_to(self.root).as_posix())
        return found

    # ---- one file -----------------------------------------------------------------------------------

    def check_file(self, path):
        text = (self.root / path).read_text(encoding="utf-8", errors="replace")
        lines = text.split("\n")
        if lines and lines[-1] == "":
            lines.pop()
        self.check_first_line(path, lines)
        self.check_lines(path, lines)
        if path.endswith((".h", ".cuh")):
            self.check_guard(path, text)
        if path.endswith((".c", ".cu", ".cuh", ".cc")):
            self.check_functions(path, lines)
        if len(lines) > FILE_MAX and not path.endswith(".def"):
            self.offend(path, len(lines), f"{len(lines)} lines; allowed are at most {FILE_MAX}")

    def check_first_line(self, path, lines):
        first = lines[0] if lines else ""
        if not first.startswith(f"/* {path} - "):
            self.offend(path, 1, f"first line is '{first[:60]}'; allowed is '/* {path} - one sentence. */'")

    def check_lines(self, path, lines):
        most = DEF_LINE_MAX if path.endswith(".def") else LINE_MAX
        is_fenced = False
        for number, line in enumerate(lines, 1):
            if "clang-format off" in line:
                is_fenced = True
            if "clang-format on" in line:
                is_fenced = False
            limit = DEF_LINE_MAX if is_fenced else most
            if len(line) > limit:
                self.offend(path, number, f"{len(line)} columns; allowed are at most {limit}")
            if "\t" in line or line != line.rstrip():
                self.offend(path, number, "tab or blank at the end of the line")
            if TODO.search(line):
                self.offend(path, number, "a note to do something; allowed are Decisions in ARCHITECTURE.md")
            self.check_calls(path, number, code_of(line))

    def check_calls(self, path, number, code):
        for pattern, why in BANNED.items():
            if re.search(pattern, code):
                self.offend(path, number, f"{why}: {code.strip()[:70]}")
        if CLOCK.search(code) and not path.startswith(CLOCK_ROOMS) and path != "runtime/base/log.c":
            self.offend(path, number, f"clock or sleep outside the real world: {code.strip()[:70]}")
        if path.startswith("actors/") and ACTOR_WORDS.search(code):
            self.offend(path, number, f"actors may not do this: {code.strip()[:70]}")
        if path.startswith("actors/") and ACTOR_GLOBAL.search(code.rstrip()) and "const" not in code:
            self.offend(path, number, f"actors have no global variables: {code.strip()[:70]}")
        found = UNDERSCORE.search(code)
        if found:
            name = found.group(1) or found.group(2)
            self.offend(path, number, f"{name} begins with an underscore")

    def check_guard(self, path, text):
        if path.startswith("kernels/cpu/") and "#ifndef" not in text:
            return  # a template, expanded by several tables with other macros
        name = re.sub(r"\W", "_", path).upper()
        if f"#ifndef {name}\n#define {name}\n" not in text:
            self.offend(path, 1, f"no header guard; allowed is {name}")

    def check_functions(self, path, lines):
        """A function begins with a brace in the first column and ends with one."""
        start = None
        for number, line in enumerate(lines, 1):
            if line == "{":
                start = number
            elif line == "}" and start is not None:
                length = number - start + 1
                above = "\n".join(lines[max(0, start - 9):start])
                if length > FUNCTION_MAX and not (LONG.search(above) or name_of(lines, start) == "main"):
                    self.offend(path, start, f"a function of {length} lines; allowed are {FUNCTION_MAX}")
                start = None

    # ---- all files ----------------------------------------------------------------------------------

    def check_dead_headers(self, files):
        """Headers and tables that nobody includes."""
        included = set()
        for path in files:
            text = (self.root / path).read_text(encoding="utf-8", errors="replace")
            for name in re.findall(r'#\s*include\s+"([^"]+)"', text):
                here = os.path.normpath(os.path.join(os.path.dirname(path), name))
                included.add(here)
                included.add(os.path.normpath(name))
        for path in files:
            if path.endswith((".h", ".def", ".cuh")) and path not in included:
                self.offend(path, 1, "nobody includes it")

    def check_format(self, files):
        tool = shutil.which("clang-format-14")
        if tool is None:
            print("clang-format-14 is not installed: formatting is not checked")
            return
        sources = [path for path in files if path.endswith((".c", ".h", ".cu", ".cuh", ".cc"))]
        for start in range(0, len(sources), 40):
            result = subprocess.run([tool, "--dry-run", *sources[start:start + 40]], cwd=self.root,
                                    capture_output=True, text=True)
            seen = set()
            for line in result.stderr.splitlines():
                found = re.match(r"(\S+):(\d+):\d+: warning: code should be clang-formatted", line)
                if found and found.group(1) not in seen:
                    seen.add(found.group(1))
                    self.offend(found.group(1), found.group(2), "not as clang-format 14 would write it")


def code_of(line):
    """The line without strings and comments, as far as one line tells."""
    line = re.sub(r'"(?:\\.|[^"\\])*"', '""', line)
    line = re.sub(r"/\*.*?(\*/|$)", "", line)
    return "" if re.match(r"\s*\* |\s*\*$|\s*\*/", line) else re.sub(r"//.*", "", line)


def name_of(lines, start):
    found = re.match(r".*?(\w+)\(", lines[start - 2]) if start >= 2 else None
    return found.group(1) if found else ""


def main():
    tidy = Tidy(sys.argv[1] if len(sys.argv) > 1 else ".")
    files = tidy.files()
    for path in files:
        tidy.check_file(path)
    tidy.check_dead_headers(files)
    tidy.check_format(files)
    for offence in tidy.offences:
        print(offence)
    print(f"{len(files)} files, {len(tidy.offences)} offences")
    return 1 if tidy.offences or not files else 0


if __name__ == "__main__":
    sys.exit(main())
