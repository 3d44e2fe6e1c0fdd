/* runtime/openai/writer.h - text and JSON into a fixed buffer, which empties itself into a sink
 * when it is full. */
#ifndef RUNTIME_OPENAI_WRITER_H
#define RUNTIME_OPENAI_WRITER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

typedef void writer_sink_fn(void *context, const char *text, size_t size);

/* Without a sink, what does not fit is dropped and is_cut set. */
typedef struct {
    char *text;
    size_t cap, used;
    writer_sink_fn *sink;
    void *context;
    bool is_cut;
} writer_t;

/* Hand what is buffered to the sink and start again; nothing without a sink. */
void writer_flush(writer_t *self);

void writer_bytes(writer_t *self, const char *text, size_t size);
void writer_text(writer_t *self, const char *text);

/* A short formatted piece: at most 256 bytes. */
void writer_format(writer_t *self, const char *format, ...) __attribute__((format(printf, 2, 3)));
void writer_number(writer_t *self, uint64_t value);

/* A log probability or similar: nine digits at most; infinities and NaN as JSON allows: -9999.0 and
 * null. */
void writer_float(writer_t *self, double value);

/* The inside of a JSON string: quotes, backslashes and control characters escaped, all else as it
 * is. */
void writer_json_inside(writer_t *self, const char *text, size_t size);

/* A whole JSON string with its quotes. */
void writer_json(writer_t *self, const char *text, size_t size);

#endif
