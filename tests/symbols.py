# tests/symbols.py - what the actors' objects may call: no clock, sockets, threads or heap.
"""Usage: symbols.py libactors.a.  Lists undefined symbols (nm) against the allow-list below."""
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

# Names of ours: the contract (runtime/actor.h and its ports) and the rooms below the actors.
OWN = re.compile(
    r"^(actor_|msg_|request_|error_|role_names|sampling_|invariant_failed|metric|histogram_|config_"
    r"|address_text|company_|json_text_|log_is_on"  # base
    r"|kv_|block_|blocks_|key_|keys_|prefix_|transfer_|table_|hex_|ring_|slots_|lru_|lease"  # kv
    r"|batch_|placement_|policy_|predict|cost_"  # policy
    r"|tokenizer_|detokenizer_|chat_|reasoning_|sample_"  # model
    r"|openai_|http_|sse_|usage_)")  # shapes of the API


def undefined_by_object(archive):
    """Undefined symbols of each object, less what the archive itself defines."""
    text = subprocess.run(["nm", "-A", archive], check=True, capture_output=True, text=True).stdout
    undefined, defined = {}, set()
    for line in text.splitlines():
        where, _, rest = line.rpartition(":")
        parts = rest.split()
        if len(parts) == 2 and parts[0] in "Uw":
            undefined.setdefault(where.rpartition(":")[2], set()).add(parts[1])
        elif len(parts) == 3 and parts[1] in "TDRBC":
            defined.add(parts[2])
    return {name: symbols - defined for name, symbols in undefined.items()}


def is_allowed(symbol):
    symbol = symbol.split("@")[0]
    return symbol in LIBRARY or COMPILER.match(symbol) or OWN.match(symbol)


def main():
    objects = undefined_by_object(sys.argv[1])
    if not objects:
        print(f"{sys.argv[1]}: found no objects; an archive with the actors is needed")
        return 1
    bad = 0
    for name, symbols in sorted(objects.items()):
        for symbol in sorted(symbols):
            if is_allowed(symbol):
                continue
            bad += 1
            print(f"{name}: calls {symbol}, which actors may not (allow-list: tests/symbols.py)")
    print(f"{len(objects)} objects, {bad} symbols refused")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
