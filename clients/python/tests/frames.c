/* clients/python/tests/frames.c - prints frames made by the C codec, for test_codec.py.
 *
 *   cc -I. clients/python/tests/frames.c libproto.a libbase.a -lmsgpackc -o frames && ./frames >
 * clients/python/tests/frames.json
 */
#include <stdio.h>
#include <string.h>

#include "proto/messages.h"

static void print(const char *name, const msg_t *m)
{
    static uint8_t frame[1 << 16];
    size_t size = msg_encode(m, frame, sizeof frame);
    printf("  \"%s\": \"", name);
    for (size_t i = 0; i < size; i++) printf("%02x", frame[i]);
    printf("\",\n");
}

static void begin(msg_t *m, msg_type_t type)
{
    msg_init(m, type);
    m->header.request = (request_id_t){ 0x0123456789abcdef, 0xfedcba9876543210 };
    m->header.attempt = 1;
    m->header.epoch = 1ull << 50;
    m->header.to_epoch = 7;
    m->header.sequence = 300;
    m->header.sent_us = 123456789;
}

int main(void)
{
    static msg_t m;
    puts("{");
    begin(&m, MSG_client_tokens);
    m.client_tokens.first_index = 3;
    m.client_tokens.ids_count = 2;
    m.client_tokens.ids[0] = 5;
    m.client_tokens.ids[1] = 70000;
    m.client_tokens.logprobs_count = 2;
    m.client_tokens.logprobs[0] = -0.5f;
    m.client_tokens.logprobs[1] = -2;
    m.client_tokens.reasoning = (bytes_t){ "so", 2 };
    m.client_tokens.text = (bytes_t){ "深é", strlen("深é") };
    print("client_tokens", &m);
    begin(&m, MSG_client_finished);
    m.client_finished.reason = FINISH_LENGTH;
    m.client_finished.prompt_tokens = 100;
    m.client_finished.completion_tokens = 65536;
    m.client_finished.reasoning_tokens = 20;
    m.client_finished.cached_tokens = 64;
    print("client_finished", &m);
    begin(&m, MSG_client_failed);
    m.client_failed.error = ERR_OVERLOAD;
    m.client_failed.is_retry_safe = 1;
    m.client_failed.retry_after_ms = 1500;
    strcpy(m.client_failed.message, "every queue is full");
    strcpy(m.client_failed.param, "");
    print("client_failed", &m);
    begin(&m, MSG_client_submit);
    strcpy(m.client_submit.key, "secret");
    m.client_submit.kind = 2;
    m.client_submit.max_tokens = 24;
    m.client_submit.sampling = sampling_default;
    m.client_submit.sampling.seed = UINT64_MAX;
    m.client_submit.sampling.temperature = 0.5f;
    m.client_submit.stop_ids_count = 1;
    m.client_submit.stop_ids[0] = 9;
    m.client_submit.stop = (bytes_t){ "end", 4 };
    m.client_submit.content = (bytes_t){ "[]", 2 };
    print("client_submit", &m);
    begin(&m, MSG_hello);
    m.hello.role = ROLE_ingress;
    m.hello.model_key = UINT64_MAX;
    strcpy(m.hello.version, "0.1.0");
    print("hello", &m);
    begin(&m, MSG_client_cancel);
    print("client_cancel", &m);
    puts("  \"end\": \"\"\n}");
    return 0;
}
