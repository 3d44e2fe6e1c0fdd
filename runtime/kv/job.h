/* runtime/kv/job.h - pool jobs under way: which slot and which of its blocks a completion is about.
 */
#ifndef RUNTIME_KV_JOB_H
#define RUNTIME_KV_JOB_H

#include <stdint.h>

enum {
    JOBS_MAX = 128
}; /* of one actor; below POOL_JOBS_MAX, so that the port never refuses for their number */

typedef enum { JOB_PULL, JOB_SEAL } job_kind_t;

typedef struct {
    uint64_t id; /* 0: not in use */
    job_kind_t kind;
    uint32_t slot, first, count;
} job_t;

typedef struct {
    job_t jobs[JOBS_MAX];
    uint32_t count;
    uint64_t serial;
} jobs_t;

/* A new job; 0 when JOBS_MAX are under way.  All zero is an empty table. */
uint64_t jobs_open(jobs_t *self, const job_t *job);

/* End a job; its kind is the answer's.  id 0 when it is not known. */
job_t jobs_close(jobs_t *self, uint64_t id);

#endif
