/* runtime/kv/job.c - a small table; a job's id names its place. */
#include "job.h"

#include "../invariant.h"

uint64_t jobs_open(jobs_t *self, const job_t *job)
{
    if (self->count == JOBS_MAX) return 0;
    uint32_t place = 0;
    while (self->jobs[place].id != 0) place++; /* one is free */
    invariant(place < JOBS_MAX);
    self->serial += 1;
    self->count += 1;
    self->jobs[place] = *job;
    self->jobs[place].id = self->serial * JOBS_MAX + place;
    return self->jobs[place].id;
}

job_t jobs_close(jobs_t *self, uint64_t id)
{
    job_t *job = &self->jobs[id % JOBS_MAX];
    if (id == 0 || job->id != id) return (job_t){ 0 };
    job_t closed = *job;
    job->id = 0;
    invariant(self->count > 0);
    self->count -= 1;
    return closed;
}
