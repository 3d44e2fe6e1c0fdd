/* tests/fuzz/fuzz_config.c - configuration files of any bytes: refused in one line, or shown and
 * read back the same. */
#include "runtime/base/config.h"
#include "runtime/invariant.h"

#include <stdint.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void read_back(const config_loaded_t *loaded)
{
    static config_loaded_t again;
    static char shown[1 << 18];
    size_t size = config_show(loaded, shown, sizeof shown);
    invariant(size < sizeof shown);
    config_init(&again);
    err_t error = config_read_text(&again, "shown", shown, size);
    invariant(error == ERR_OK);
    static char twice[1 << 18];
    memcpy(again.origins, loaded->origins, sizeof again.origins);
    memcpy(again.file, loaded->file, sizeof again.file);
    invariant(config_show(&again, twice, sizeof twice) == size);
    invariant(memcmp(shown, twice, size) == 0);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    static config_loaded_t loaded;
    config_init(&loaded);
    err_t error = config_read_text(&loaded, "fuzz.yaml", (const char *)data, size);
    if (error == ERR_OK) {
        read_back(&loaded);
        error = config_check(&loaded);
    }
    invariant(error == ERR_OK || loaded.error[0] != 0);
    invariant(strchr(loaded.error, '\n') == NULL);
    return 0;
}
