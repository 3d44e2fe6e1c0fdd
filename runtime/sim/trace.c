/* runtime/sim/trace.c - the event log: its hash, and its last lines to explain a failure. */
#include "parts.h"

#include <stdarg.h>
#include <string.h>

#define XXH_INLINE_ALL
#include <xxhash.h>

static void print(const trace_record_t *record, FILE *out)
{
    const header_t *header = &record->header;
    fprintf(out, "%10.6f ", (double)record->at_us / 1e6);
    if (record->what)
        fprintf(out, "%s.%u %s %s from %s.%u request %016llx%016llx attempt %u epoch %llu\n",
                role_names[record->who.role], record->who.index, record->what,
                msg_descs[record->type].name, role_names[header->from.role], header->from.index,
                (unsigned long long)header->request.hi, (unsigned long long)header->request.lo,
                header->attempt, (unsigned long long)header->epoch);
    else
        fprintf(out, "%s\n", record->line);
}

static trace_record_t *next_record(sim_t *self)
{
    trace_record_t *record = &self->trace.records[self->trace.count++ % TRACE_LINES];
    record->at_us = self->now_us;
    return record;
}

static void write_line(sim_t *self, const char *format, va_list arguments)
{
    trace_record_t *record = next_record(self);
    record->what = NULL;
    vsnprintf(record->line, sizeof record->line, format, arguments);
    if (self->options.is_verbose) print(record, stderr);
}

void trace_line(sim_t *self, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    write_line(self, format, arguments);
    va_end(arguments);
}

void sim_note(sim_t *self, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    write_line(self, format, arguments);
    va_end(arguments);
}

void trace_hash(sim_t *self, const void *data, size_t size)
{
    self->trace.hash = XXH3_64bits_withSeed(data, size, self->trace.hash);
    self->trace.events++;
}

void trace_message(sim_t *self, const actor_t *node, const char *what, const msg_t *m)
{
    const header_t *header = &m->header;
    const uint64_t facts[] = { self->now_us,       node->number,       (uint64_t)m->type,
                               header->request.hi, header->request.lo, header->attempt,
                               header->epoch,      header->sequence,   header->from.role,
                               header->from.index };
    trace_hash(self, facts, sizeof facts);
    trace_record_t *record = next_record(self);
    record->what = what;
    record->who = node->address;
    record->type = m->type;
    record->header = *header;
    if (self->options.is_verbose) print(record, stderr);
}

void sim_print_tail(const sim_t *self, FILE *out)
{
    const trace_t *trace = &self->trace;
    uint64_t first = trace->count > TRACE_LINES ? trace->count - TRACE_LINES : 0;
    for (uint64_t line = first; line < trace->count; line++)
        print(&trace->records[line % TRACE_LINES], out);
}

uint64_t sim_hash(const sim_t *self)
{
    return self->trace.hash;
}

uint64_t sim_event_count(const sim_t *self)
{
    return self->trace.events;
}

void sim_fail(sim_t *self, const char *invariant_id, const char *format, ...)
{
    if (self->is_failed) return;
    self->is_failed = true;
    int used = snprintf(self->failure, sizeof self->failure, "%s at %.6f s: ", invariant_id,
                        (double)self->now_us / 1e6);
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(self->failure + used, sizeof self->failure - (size_t)used, format, arguments);
    va_end(arguments);
}

const char *sim_failure(const sim_t *self)
{
    return self->is_failed ? self->failure : NULL;
}
