/* tests/fuzz/fuzz_safetensors.c - any bytes as a safetensors file: refused with a reason, or sound.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "runtime/invariant.h"
#include "runtime/model/weights.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    error_text_t why = { "" };
    err_t error = safetensors_check(data, size, &why);
    invariant(!error ||
              (error == ERR_MODEL && why.text[0] && memchr(why.text, 0, sizeof why.text)));
    return 0;
}
