/* actors/ingress_parts.h - the state of ingress and what its files share.
 *
 *   ingress.c          messages of the company, the class
 *   ingress_life.c     attempts of a request, silence about it, its end
 *   ingress_routes.c   paths of the HTTP API
 *   ingress_admit.c    from a parsed body to requests, and their submission
 *   ingress_answer.c   what clients get: chunks, whole answers, errors
 *   ingress_turns.c    what takes more than one turn
 *   ingress_books.c    calls and requests: taking, finding, giving back
 *
 * A call is what one client asked for in one go; a request is one generation of it (n choices,
 * several prompts); a job is the call's body on its way to them.
 */
#ifndef ACTORS_INGRESS_PARTS_H
#define ACTORS_INGRESS_PARTS_H

#include "../runtime/actor.h"
#include "../runtime/kv/key.h"
#include "../runtime/kv/table.h"
#include "../runtime/model/chat.h"
#include "../runtime/net/http.h"
#include "../runtime/openai/alarm.h"
#include "../runtime/openai/answer.h"
#include "../runtime/openai/chain.h"
#include "../runtime/openai/openai.h"
#include "../runtime/openai/text.h"

#define NONE UINT32_MAX

enum {
    OUTPUT_BYTES = 4 << 20,           /* answers are written through a buffer of this size */
    PRINT_PER_TURN = 65536,           /* log probabilities of whole answers: some 50 ms */
    DELTA_BYTES = 16384,              /* text that one message of tokens can complete */
    CANCELS_PER_TURN_MAX = 64,        /* answers to tokens of requests that are not known */
    SUBJECTS_MAX = 768,               /* actors whose metrics are shown */
    AT_ONCE_BYTES = 32768,            /* a body of no more is worked off as it comes... */
    AT_ONCE_TURN = 4 * AT_ONCE_BYTES, /* ...unless one turn brings more of them */
    JOBS_MAX = 64,                    /* bodies that are worked off step by step */
};

typedef enum { REQUEST_FREE, REQUEST_WAITING, REQUEST_RUNNING, REQUEST_ENDED } request_state_t;

/* What the last probe brought from each balancer. */
typedef enum { HOLD_UNKNOWN, HOLD_YES, HOLD_NO } hold_t;

typedef struct {
    request_state_t state;
    request_id_t id;
    uint32_t call, next; /* of the call's list, or of the free list */
    uint32_t choice;
    uint32_t attempt, losses;
    uint32_t prompt_count, max_tokens, generated;
    uint32_t cached; /* of the prompt, for the attempt that gave the first token: those after it
                        find their own prompt in the store */
    uint32_t prompt_records; /* positions of the prompt whose log probability is known */
    uint64_t seed;
    uint64_t heard_us, resume_us, probed_us;
    uint64_t hold_until_us; /* nobody takes it: for how long that is borne; 0: somebody did */
    uint64_t last_token_us;
    text_place_t place; /* of what was answered */
    hold_t prefill_hold, decode_hold;
    uint32_t misses;
    address_t sender; /* of its tokens, for cancel; role client: none yet */
    bool is_begun;    /* its first chunk was written */
    finish_t reason;
    text_t text;
    chain_t tokens; /* prompt, then what was generated */
    chain_t records,
        prompt_chain; /* log probabilities, for answers that are not streamed, and of the prompt */
} request_t;

typedef struct {
    bool is_used, is_client, is_begun;
    bool is_in_print; /* a whole answer whose first part is written */
    bool is_admitted; /* its requests are the company's; before that nobody has heard of them */
    bool is_cut; /* a ZeroMQ client that did not take its tokens: it gets no more, and is told so */
    bool is_chat, is_stream, has_usage_chunk, has_usage_always, is_echo, is_prompt_only, has_stops;
    uint64_t exchange;
    address_t client;
    uint64_t client_epoch;
    request_id_t client_id;
    uint32_t first, last, next; /* its requests; next of the free list, or of those in print */
    uint32_t unprinted;         /* its first request that is not in the answer yet */
    uint32_t job;               /* NONE: all of its body is worked off */
    uint32_t count, open_count;
    uint32_t n; /* choices of each prompt */
    uint64_t prompt_tokens;
    uint64_t created_s, arrived_us, deadline_us;
    chat_reasoning_t reasoning;
    sampling_t sampling;
    uint32_t stop_id_count, bias_count;
    char id[48];
} call_t;

/* What few calls have; a page that nobody touches costs nothing. */
typedef struct {
    stop_set_t stops;
    uint32_t stop_ids[STOP_IDS_MAX];
    uint32_t bias_ids[LOGIT_BIAS_MAX];
    float bias_values[LOGIT_BIAS_MAX];
} extras_t;

/*   BODY --parsed--> PROMPT --rendered--> TEXT --tokenised--> CHOICES --the last prompt's--> SUBMIT
 *                      ^                   |                     |                             |
 *                      +-------------------|----the next prompt--+                             v
 *                                          +--/tokenize, /detokenize--> PRINT --------------> OVER
 */
typedef enum {
    JOB_BODY,
    JOB_PROMPT,
    JOB_TEXT,
    JOB_CHOICES,
    JOB_SUBMIT,
    JOB_PRINT,
    JOB_OVER
} job_state_t;

typedef struct {
    job_state_t state;
    bool is_at_once;     /* in the turn in which it came; what was said still lies where it came */
    uint32_t call, next; /* of the list of those that wait, or of the free list */
    openai_kind_t kind;
    size_t bytes;               /* of what was said */
    bytes_t body;               /* HTTP */
    msg_client_submit_t submit; /* ZeroMQ */
    arena_t arena;
    openai_call_t *parsed;
    uint32_t prompt, choice;       /* that is next */
    uint32_t prompt_count, output; /* tokens of that prompt, and what may follow */
    uint32_t request;              /* that is submitted next */
    writer_t out;                  /* of /tokenize and /detokenize */
    uint32_t printed;              /* of prompt_count */
    detokenizer_t detokenizer;
    encoding_t encoding;
    uint32_t *ids; /* CONTEXT_MAX of them */
} job_t;

static inline bool is_generation(openai_kind_t kind)
{
    return kind == OPENAI_CHAT || kind == OPENAI_COMPLETION;
}

typedef struct {
    bool is_used;
    uint32_t role, index;
    double slots[METRIC_SLOTS_MAX];
} subject_t;

typedef struct {
    const config_t *config;
    tokenizer_t *tokenizer;
    chat_t *chat;
    key_maker_t *keys;
    model_config_t model;
    uint64_t model_hash, started_s;
    char model_name[128], fingerprint[24];
    uint32_t context_max;
    size_t text_max; /* bytes; a longer text has more than context_max tokens */

    request_t *requests;
    call_t *calls;
    extras_t *extras;   /* by call */
    stop_tail_t *tails; /* by request */
    uint32_t requests_max, free_request, free_call;
    uint32_t in_print; /* the call whose end takes more than a turn, and those behind it */
    uint64_t print_at_us;
    job_t *jobs; /* the first is for those at once */
    uint32_t free_job;
    uint32_t in_work;                   /* the job whose turn is next, and those behind it */
    size_t at_once_left, job_bytes;     /* of bodies: what a turn still takes; what jobs hold */
    uint32_t request_count, call_count; /* held */
    table_t by_id, by_caller;
    chain_pool_t pool;
    alarms_t alarms;

    uint32_t *ids; /* one whole context, for what needs it in one piece */
    uint8_t *key_bytes;
    char *output;
    size_t output_size;
    char *reasoning, *content; /* DELTA_BYTES each */
    size_t reasoning_size, content_size;
    token_record_t *batch; /* of one message of tokens */
    uint32_t batch_count;
    stop_tail_t *tail; /* for rendering a whole text */
    subject_t *subjects;
    metrics_subject_t *shown;

    uint64_t accepted, finished, failed, cancelled;
    uint64_t served_us; /* when the last token or end came */
    uint64_t busy_us;   /* since when requests have been held without a pause */
    uint32_t cancels_left;
    bool is_draining;
} ingress_t;

/* ---- books ---- */

/* Allocate every table.  ERR_NO_SPACE never comes back: actor_alloc fails loudly. */
void books_init(ingress_t *self, actor_t *world);
call_t *call_take(ingress_t *self);
request_t *request_take(ingress_t *self, call_t *call);
/* Mint its id and make it findable. */
void request_name(ingress_t *self, actor_t *world, request_t *request);
uint32_t call_index(const ingress_t *self, const call_t *call);
uint32_t request_index(const ingress_t *self, const request_t *request);
request_t *request_find(const ingress_t *self, request_id_t id);
call_t *call_find_exchange(const ingress_t *self, uint64_t exchange);
call_t *call_find_client(const ingress_t *self, address_t client, request_id_t id);
/* Make it findable; false when the client already has a call of this name. */
bool call_name_exchange(ingress_t *self, call_t *call, uint64_t exchange);
bool call_name_client(ingress_t *self, call_t *call, address_t client, request_id_t id);
/* Give back the call, its job and its requests, which have all ended. */
void call_free(ingress_t *self, call_t *call);
/* Requests of a call that was not admitted end as if they had never been. */
void call_forget(ingress_t *self, call_t *call);
/* All tokens of a request into self->ids; returns how many. */
uint32_t request_gather(const ingress_t *self, const request_t *request);
/* Append to a chain of log probabilities; false: no room. */
bool record_keep(ingress_t *self, chain_t *chain, const token_record_t *record);
void books_check(const ingress_t *self);

/* ---- the life of a request ---- */

/* The end of a request; the last one of a call ends the call.  FINISH_CANCELLED: it was cut. */
void request_finish(ingress_t *self, actor_t *world, request_t *request, finish_t reason);
/* With its whole call, whose other requests are cancelled. */
void request_fail(ingress_t *self, actor_t *world, request_t *request, err_t error);
/* This attempt came to nothing: the next one, at once or later, or the end where none may help. */
void request_try_again(ingress_t *self, actor_t *world, request_t *request, err_t error);
/* Its alarm rang: it waits for its next attempt, nobody spoke of it, or its deadline came. */
void request_watch(ingress_t *self, actor_t *world, request_t *request);
/* End everything of a call: the requests that still run are cancelled in the company; the client
 * gets the error. */
void call_fail(ingress_t *self, actor_t *world, call_t *call, const openai_error_t *why);
/* The same without a word: the client is gone. */
void call_drop(ingress_t *self, actor_t *world, call_t *call);
void request_cancel(ingress_t *self, actor_t *world, const request_t *request);
void request_arm(ingress_t *self, actor_t *world, request_t *request);
bool is_end_token(const ingress_t *self, const call_t *call, uint32_t id);
bool is_stop_id(const ingress_t *self, const call_t *call, uint32_t id);

/* ---- what takes more than one turn ---- */

/* Room to work off bodies; before any other call.  ERR_NO_SPACE. */
MUST_CHECK err_t turns_init(ingress_t *self, actor_t *world);
/* All of a call's body is worked off, or nobody wants it any more. */
void job_free(ingress_t *self, job_t *job);
/* Tell the end of a call whose requests have all ended, and give it back; now, or in later turns.
 */
void call_end(ingress_t *self, actor_t *world, call_t *call);
/* What a call is about, as it came: borrowed. */
typedef struct {
    openai_kind_t kind;
    bytes_t body;                      /* HTTP */
    const msg_client_submit_t *submit; /* ZeroMQ; else NULL */
} said_t;

/* Work off what was said, large bodies in later turns; what becomes of it the client is told. */
void call_work(ingress_t *self, actor_t *world, call_t *call, const said_t *said);
/* One part of the next of what waits for its turn. */
void turns_go_on(ingress_t *self, actor_t *world);
/* Ask to be woken for the next alarm or turn, whichever comes first. */
void turns_set_wake(const ingress_t *self, actor_t *world);

/* ---- admission ---- */

/* The next step of a job; *work falls, in the unit of tokenizer.h.  On error *why says why, and the
 * call is as it was before the step. */
MUST_CHECK err_t admit_step(ingress_t *self, actor_t *world, job_t *job, size_t *work,
                            openai_error_t *why);
/* ERR_OVERLOAD: what is asked for has no room now. */
err_t refuse_full(openai_error_t *why);
/* Send this attempt to prefill_lb.  Whatever comes back, the request's alarm is set for what is
 * next. */
MUST_CHECK err_t request_submit(ingress_t *self, actor_t *world, request_t *request);

/* ---- answers ---- */

text_rules_t answer_rules(const ingress_t *self, const call_t *call, stop_tail_t *tail);
/* What of a message of tokens was accepted: `count` tokens from index `first` on.  Those before
 * them came already. */
typedef struct {
    const msg_tokens_t *tokens;
    uint32_t first, count;
} fresh_t;

/* Text and log probabilities of one message of tokens (self->reasoning, content, batch) to the
 * client. */
void answer_delta(ingress_t *self, actor_t *world, request_t *request, const fresh_t *fresh);
void answer_request_end(ingress_t *self, actor_t *world, request_t *request);
/* False: not told yet; another call of this, in another turn, goes on.  A whole answer may be
 * large, a client's link full. */
MUST_CHECK bool answer_call_end(ingress_t *self, actor_t *world, call_t *call);
void answer_call_error(ingress_t *self, actor_t *world, call_t *call, const openai_error_t *why);
void answer_error(ingress_t *self, actor_t *world, uint64_t exchange, const openai_error_t *why);
/* False: the link is full. */
bool answer_client_error(actor_t *world, address_t client, request_id_t id,
                         const openai_error_t *why);
/* Append to self->reasoning or self->content. */
text_sink_t answer_sink(ingress_t *self);

/* ---- routes ---- */

void on_http_request(void *state, actor_t *world, const msg_t *m);
void on_client_submit(void *state, actor_t *world, const msg_t *m);
/* Parse a job's body into job->parsed. */
MUST_CHECK err_t read_job(ingress_t *self, job_t *job, openai_error_t *why);
/* What /tokenize and /detokenize answer: begin to print it, go on; *work falls.  After the last
 * part it is sent and the call given back. */
void print_tokens_begin(ingress_t *self, job_t *job);
MUST_CHECK err_t print_tokens(ingress_t *self, actor_t *world, job_t *job, size_t *work,
                              openai_error_t *why);
/* NULL when both balancers and a whole group of workers of each kind are up, else the role that is
 * missing. */
const char *path_missing(const ingress_t *self, actor_t *world);
/* The same of the half of the path that a request takes after its first token. */
const char *decode_missing(const ingress_t *self, actor_t *world);
/* NULL when the path to tokens exists and tokens come, else what is missing. */
const char *health_missing(const ingress_t *self, actor_t *world);

#endif
