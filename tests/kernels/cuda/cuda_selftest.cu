/* tests/kernels/cuda/cuda_selftest.cu - one self-contained program that checks every CUDA op on a
 * Hopper GPU; tests/kernels/cuda/run calls it. */
#include "families.h"

int main(int argc, char **argv)
{
    return cuda_families_run(argc, argv);
}
