/* tests/kernels/cuda/families.cu - runs the checks and timings of every family of CUDA ops. */
#include "families.h"
#include "harness.cuh"

#ifdef EMULATED
#include "emulated/device.h"
#endif

#include <stdlib.h>
#include <string.h>
#include <time.h>

struct family_t {
    const char *name;
    void (*small)(harness_t *), (*checks)(harness_t *), (*timings)(harness_t *);
};

static const family_t families[] = {
#define FAMILY(name) { #name, run_small_checks_##name, run_checks_##name, run_timings_##name },
#include "families.def"
#undef FAMILY
};

static bool is_wanted(const char *name, char **names, int count)
{
    for (int i = 0; i < count; i++)
        if (strcmp(names[i], name) == 0) return true;
    return count == 0;
}

struct copy_t {
    harness_t *harness;
    char *from, *to;
    size_t bytes;
};

static int copy(void *context, uint32_t variant)
{
    copy_t *self = (copy_t *)context;
    return cudaMemcpyAsync(self->to, self->from, self->bytes, cudaMemcpyDeviceToDevice,
                           self->harness->q->stream);
}

/* What this machine's memory gives today: every share of a roof refers to it. */
static void measure_copy(harness_t *self, size_t bytes)
{
    copy_t context = { self, (char *)memory_new(bytes), (char *)memory_new(bytes), bytes };
    double us = time_call(self, copy, &context, 1);
    self->copy_bytes_per_s = 2.0 * (double)bytes / us * 1e6;
    printf("copy of %zu MiB: %.1f us, %.0f GB/s read and written\n", bytes >> 20, us,
           self->copy_bytes_per_s * 1e-9);
    memory_free_all();
}

int cuda_families_run(int argc, char **argv)
{
    bool is_small = false, has_checks = true, has_timings = true;
    static harness_t self;
    uint64_t seed = (uint64_t)time(NULL);
    int next = 1;
    for (; next < argc && argv[next][0] == '-'; next++) {
        if (strcmp(argv[next], "--small") == 0)
            is_small = true, has_timings = false;
        else if (strcmp(argv[next], "--checks") == 0)
            has_timings = false;
        else if (strcmp(argv[next], "--timings") == 0)
            has_checks = false;
        else if (strcmp(argv[next], "--table") == 0 && next + 1 < argc)
            self.table = fopen(argv[++next], "w");
        else if (strcmp(argv[next], "--seed") == 0 && next + 1 < argc)
            seed = strtoull(argv[++next], NULL, 10);
        else
            return fprintf(stderr,
                           "unknown option %s; allowed are --small, --checks, --timings, --table "
                           "FILE, --seed N\n",
                           argv[next]),
                   2;
    }
    self.q = queue_new_cuda(0, (size_t)1 << 30);
    self.ops = &ops_cuda;
    self.cpu = queue_new_cpu((size_t)1 << 30, 8);
    self.random = seed;
#ifdef EMULATED
    emulated::seed_set(seed);
#endif
    if (!self.q || !self.cpu) return fprintf(stderr, "no Hopper GPU with 1 GiB free\n"), 1;
    cudaDeviceProp properties;
    CUDA(cudaGetDeviceProperties(&properties, 0));
    printf("%s, %d SMs; seed %llu\n", properties.name, self.q->sm_count,
           (unsigned long long)self.random);
    if (has_timings) {
        measure_copy(&self, (size_t)256 << 20);
        measure_copy(&self, (size_t)4 << 30);
    }
    for (const family_t &family : families) {
        if (!is_wanted(family.name, argv + next, argc - next)) continue;
        int failures = self.failures, checks = self.checks;
        if (is_small)
            family.small(&self);
        else if (has_checks)
            family.checks(&self);
        memory_free_all();
        if (has_checks)
            printf("%s: %d checks, %d failed\n", family.name, self.checks - checks,
                   self.failures - failures);
        fflush(stdout);
        if (has_timings) family.timings(&self);
        memory_free_all();
    }
    if (self.table) fclose(self.table);
    queue_destroy_cuda(&self.q);
    queue_destroy(&self.cpu);
    printf("%d passed, %d failed\n", self.checks - self.failures, self.failures);
    return self.failures != 0;
}
