# tests/symbols.py - what the actors' objects may call: no clock, sockets, threads or heap.
"""Usage: symbols.py libactors.a LIBRARIES_BELOW...  Lists undefined symbols (nm) against the allow-list below."""
import re
import subprocess
import sys

# Pure functions of the C library: memory, strings, formatting into buffers, sorting, arithmetic.
LIBRARY = """
memcpy memmove memset memcmp memchr memmem strlen strnlen strcmp strncmp strchr strrchr strstr strspn strcspn
strtol strtoul strtoll strtoull strtod snprintf vsnprintf qsort bsearch
strcasecmp strncasecmp isalnum isalpha isdigit isspace tolower toupper
exp expf exp2 log logf log2 log10 pow powf sqrt sqrtf floor floorf ceil ceilf round roundf fabs fmin fmax fmod
ldexp frexp lround llround
""".split()

# What the compiler itself puts in: checks of the sanitizers and of _FORTIFY_SOURCE, glibc's renamed strtol.
COMPILER = re.compile(
    r"^(__asan_|__ubsan_|__sancov_|__sanitizer_|__stack_chk_fail|__(mem|str|v?snprintf)\w*_chk$"
    r"|__isoc\d+_(strto|sscanf)|__ctype_|_GLOBAL_OFFSET_TABLE_|__llvm_|__start___sanc|__stop___sanc|__msan_|__tsan_"
    r"|__sanitizer|__gcov)")

# The contract: runtime/actor.h and the ports beside it.
CONTRACT = re.compile(r"^actor_[a-z0-9_]+$")

# Rooms below the actors may be called, but not what in them is the real world's: its log and its files.
DENIED = re.compile(r"^(log_open|log_close|log_write|log_writev|config_read_\w+|config_set)$")


def symbols_of(archive):
    """Undefined symbols of each object, and all that the archive defines for others."""
    text = subprocess.run(["nm", "-A", archive], check=True, capture_output=True, text=True).stdout
    undefined, defined = {}, set()
    for line in text.splitlines():
        where, _, rest = line.rpartition(":")
        parts = rest.split()
        if len(parts) == 2 and parts[0] in "Uw":
            undefined.setdefault(where.rpartition(":")[2], set()).add(parts[1])
        elif len(parts) == 3 and parts[1] in "TDRBCV":
            defined.add(parts[2])
    return undefined, defined


def is_allowed(symbol, below):
    symbol = symbol.split("@")[0]
    if DENIED.match(symbol):
        return False
    return symbol in LIBRARY or symbol in below or COMPILER.match(symbol) or CONTRACT.match(symbol)


def main():
    objects, below = symbols_of(sys.argv[1])
    for archive in sys.argv[2:]:
        below |= symbols_of(archive)[1]
    if not objects:
        print(f"{sys.argv[1]}: found no objects; an archive with the actors is needed")
        return 1
    bad = 0
    for name, symbols in sorted(objects.items()):
        for symbol in sorted(symbols):
            if is_allowed(symbol, below):
                continue
            bad += 1
            print(f"{name}: calls {symbol}, which actors may not (allow-list: tests/symbols.py)")
    print(f"{len(objects)} objects, {bad} symbols refused")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
