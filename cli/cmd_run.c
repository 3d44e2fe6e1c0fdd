/* cli/cmd_run.c - troupe run: the engine alone, without the company.  What it says is what a worker
 * would compute. */
#include <cjson/cJSON.h>
#include <stdlib.h>
#include <string.h>

#include "../runtime/engine/core.h"
#include "../runtime/model/tokenizer.h"
#include "cli.h"
#include "input.h"

enum { ROWS_MAX = 512, RESULTS_MAX = 4, TOP_SHOWN = 5 };

typedef struct {
    const char *model, *prompt, *ids, *ops;
    uint32_t max_tokens;
    bool is_json;
} run_arguments_t;

/* One run: the engine, its one sequence, and what came of it. */
typedef struct {
    const run_arguments_t *given;
    config_loaded_t config;
    model_config_t model;
    tokenizer_t *tokenizer; /* NULL with --ids where the model has none */
    void *core, *pool;
    uint32_t *tokens; /* prompt, then what was generated */
    uint32_t prompt_count, token_count, context;
    detokenizer_t held;
    cJSON *json;
} run_t;

/* ---- options ---- */

enum { KEY_IDS = 256, KEY_OPS };
static const struct argp_option options[] = {
    { "model", 'm', "DIR", 0,
      "directory with config.json, *.safetensors, tokenizer.json (default: the embedded "
      "models/tiny)",
      0 },
    { "prompt", 'p', "TEXT", 0, "text to continue; the model's begin token is put before it", 0 },
    { "ids", KEY_IDS, "0,5,7", 0, "token ids to continue, exactly these", 0 },
    { "max-tokens", 'n', "N", 0, "tokens to generate at most (default: 32)", 0 },
    { "ops", KEY_OPS, "NAME", 0, "table of operations: auto, judge, avx2, ... (default: auto)", 0 },
    { "json", 'j', NULL, 0,
      "ids, text and the likeliest tokens of every step with their log probabilities, as JSON", 0 },
    { 0 },
};

static error_t parse(int key, char *value, struct argp_state *state)
{
    run_arguments_t *self = state->input;
    switch (key) {
    case 'm':
        self->model = value;
        return 0;
    case 'p':
        self->prompt = value;
        return 0;
    case KEY_IDS:
        self->ids = value;
        return 0;
    case KEY_OPS:
        self->ops = value;
        return 0;
    case 'j':
        self->is_json = true;
        return 0;
    case 'n':
        self->max_tokens = (uint32_t)option_number("--max-tokens", value, 1, CONTEXT_MAX, state);
        return 0;
    case ARGP_KEY_END:
        if (!self->prompt == !self->ids) argp_error(state, "either --prompt or --ids is needed");
        return 0;
    default:
        return ARGP_ERR_UNKNOWN;
    }
}

/* ---- the prompt ---- */

static bool read_ids(run_t *run)
{
    const char *at = run->given->ids;
    char *end;
    do {
        unsigned long id = strtoul(at, &end, 10);
        if (end == at || (*end && *end != ',') || strchr(at, '-') || id >= run->model.vocab ||
            run->prompt_count == run->context) {
            complain(
                "--ids: \"%.20s\": ids from 0 to %u with commas between, at most %u, are needed",
                at, run->model.vocab - 1, run->context);
            return false;
        }
        run->tokens[run->prompt_count++] = (uint32_t)id;
        at = *end == ',' ? end + 1 : end;
    } while (*at);
    return true;
}

static bool read_prompt(run_t *run)
{
    const char *text = run->given->prompt;
    if (!input_is_text("--prompt", text, strlen(text))) return false;
    run->tokens[0] = run->model.begin_token;
    size_t count = tokenizer_encode(run->tokenizer, text, strlen(text), true, run->tokens + 1,
                                    run->context - 1);
    run->prompt_count = (uint32_t)count + 1;
    if (count < run->context) return true;
    complain("the prompt has %zu tokens; the model takes %u", count + 1, run->context);
    return false;
}

/* ---- the engine ---- */

/* Options of this command are named as such when the configuration refuses them. */
static err_t assign(run_t *run, config_index_t key, const char *option, const char *text)
{
    return config_assign(
        &run->config,
        &(config_value_t){
            .key = key, .texts = &text, .count = 1, .is_plain = true, .where = option });
}

static err_t configure(run_t *run)
{
    config_init(&run->config);
    config_t *config = &run->config.config;
    config->company.prefill_workers = config->company.prefill_ep = 1;
    config->company.decode_workers = config->company.decode_ep = 1;
    err_t error = assign(run, CONFIG_model_path, "--model", run->given->model);
    return error ? error : assign(run, CONFIG_engine_ops, "--ops", run->given->ops);
}

static void show_loading(void *context, double fraction)
{
    (void)context;
    progress_show("loading the model", (uint64_t)(fraction * 1000), 1000);
}

static err_t open_core(run_t *run, error_text_t *why)
{
    uint32_t blocks = run->context / BLOCK_TOKENS + 1;
    size_t block_bytes = model_block_bytes(&run->model);
    run->pool = aligned_alloc(64, (blocks * block_bytes + 63) / 64 * 64);
    if (!run->pool) return ERR_NO_SPACE;
    engine_core_options_t engine = {
        .config = &run->config.config,
        .self = { ROLE_prefill_worker, 0 },
        .limits = { .slots = 1,
                    .rows_max = ROWS_MAX,
                    .sequences_max = 1,
                    .context_max = run->context },
        .pool = run->pool,
        .blocks = blocks,
        .block_bytes = block_bytes,
        .directory = "/tmp",
        .progress = show_loading,
    };
    return engine_ops_class.open(&run->core, &engine, why);
}

/* What is known of configuration and model before anything is computed.  False: refused, and
 * standard error has said why. */
static bool read_model(run_t *run)
{
    error_text_t why = { "" };
    if (configure(run) != ERR_OK) return complain("%s", run->config.error), false;
    config_word_t ops = config_word(CONFIG_engine_ops, run->config.config.engine.ops);
    if (!ops_find(ops.text)) return complain("--ops: this machine cannot run %s", ops.text), false;
    bool is_good = model_config_read(&run->model, run->given->model, &why) == ERR_OK;
    if (is_good) run->tokenizer = tokenizer_new_for(run->given->model, &run->model, &why);
    if (is_good && (run->tokenizer || run->given->ids)) return true;
    complain("%s", why.text);
    return false;
}

static bool open_run(run_t *run)
{
    error_text_t why = { "" };
    run->context = run->model.context < CONTEXT_MAX ? run->model.context : CONTEXT_MAX;
    run->tokens = calloc(run->context + 1, sizeof *run->tokens);
    if (!run->tokens || !(run->given->ids ? read_ids(run) : read_prompt(run))) return false;
    uint32_t wanted = run->prompt_count + run->given->max_tokens;
    if (wanted < run->context)
        run->context = wanted; /* memory for what is asked, not for what the model could */
    show_loading(NULL, 0);
    err_t error = open_core(run, &why);
    progress_clear();
    if (error) complain("%s", why.text[0] ? why.text : error_descs[error].doc);
    return !error;
}

static void close_run(run_t *run)
{
    if (run->core) engine_ops_class.close(&run->core);
    tokenizer_destroy(&run->tokenizer);
    cJSON_Delete(run->json);
    free(run->pool);
    free(run->tokens);
}

/* ---- generating ---- */

static err_t begin_sequence(run_t *run, const sampling_t *sampling)
{
    engine_open_t sequence = { .tokens = run->tokens,
                               .token_count = run->prompt_count,
                               .sampling = sampling };
    err_t error = engine_ops_class.start(run->core, 0, &sequence);
    run->token_count = run->prompt_count;
    for (uint32_t block = 0; !error && block <= run->context / BLOCK_TOKENS; block++)
        engine_ops_class.extend(run->core, 0, &block, 1);
    return error;
}

/* Compute tokens [first, token_count); the last gives *result. */
static err_t step(run_t *run, uint32_t first, engine_result_t *result)
{
    engine_result_t results[RESULTS_MAX];
    err_t error = ERR_OK;
    while (!error && first < run->token_count) {
        uint32_t count = run->token_count - first < ROWS_MAX ? run->token_count - first : ROWS_MAX,
                 result_count = 0;
        engine_row_t row = {
            .slot = 0, .first = first, .count = count, .is_last = first + count == run->token_count
        };
        uint64_t model_us = 0;
        error = engine_ops_class.step(run->core, &row, 1, results, RESULTS_MAX, &result_count,
                                      &model_us);
        if (!error && row.is_last && result_count == 0) return ERR_ENGINE;
        first += count;
    }
    if (!error) *result = results[0];
    return error;
}

static bool is_end(run_t *run, uint32_t token)
{
    const uint32_t *ends;
    uint32_t count = engine_ops_class.end_tokens(run->core, &ends);
    for (uint32_t i = 0; i < count; i++)
        if (ends[i] == token) return true;
    return false;
}

static void tell(run_t *run, const engine_result_t *result)
{
    char text[DETOKENIZER_EMIT_MAX];
    if (!run->given->is_json && run->tokenizer) {
        fwrite(text, 1,
               detokenizer_push(&run->held, run->tokenizer, result->token, true, text, sizeof text),
               stdout);
        fflush(stdout);
    } else if (!run->given->is_json) {
        printf("%u ", result->token);
    }
    cJSON *top = cJSON_CreateArray();
    for (uint32_t i = 0; i < result->top_count; i++) {
        cJSON *entry = cJSON_CreateArray();
        cJSON_AddItemToArray(entry, cJSON_CreateNumber(result->top_ids[i]));
        cJSON_AddItemToArray(entry, cJSON_CreateNumber((double)result->top_logprobs[i]));
        cJSON_AddItemToArray(top, entry);
    }
    cJSON_AddItemToArray(cJSON_GetObjectItem(run->json, "ids"), cJSON_CreateNumber(result->token));
    cJSON_AddItemToArray(cJSON_GetObjectItem(run->json, "top_logprobs"), top);
}

static err_t generate_all(run_t *run)
{
    sampling_t sampling = sampling_default;
    engine_result_t result = { .token = 0 };
    uint32_t known = 0;
    sampling.temperature = 0;
    sampling.logprobs = 1;
    sampling.top_logprobs = TOP_SHOWN;
    run->json = cJSON_CreateObject();
    cJSON *prompt = cJSON_AddArrayToObject(run->json, "prompt_ids");
    for (uint32_t i = 0; i < run->prompt_count; i++)
        cJSON_AddItemToArray(prompt, cJSON_CreateNumber(run->tokens[i]));
    cJSON_AddArrayToObject(run->json, "ids");
    cJSON_AddArrayToObject(run->json, "top_logprobs");
    err_t error = begin_sequence(run, &sampling);
    while (!error && run->token_count - run->prompt_count < run->given->max_tokens &&
           run->token_count <= run->context) {
        error = step(run, known, &result);
        if (error) break;
        known = run->token_count;
        run->tokens[run->token_count++] = result.token;
        tell(run, &result);
        if (is_end(run, result.token)) break;
    }
    return error;
}

static void print_json(run_t *run)
{
    uint32_t count = run->token_count - run->prompt_count;
    size_t cap = (size_t)count * DETOKENIZER_EMIT_MAX + 1;
    char *text = run->tokenizer ? calloc(cap, 1) : NULL;
    if (text) {
        tokenizer_decode(run->tokenizer, run->tokens + run->prompt_count, count, true, text,
                         cap - 1);
        cJSON_AddStringToObject(run->json, "text", text);
    }
    char *json = cJSON_PrintUnformatted(run->json);
    puts(json ? json : "null");
    free(json);
    free(text);
}

static int generate_and_print(run_t *run)
{
    err_t error = generate_all(run);
    if (run->given->is_json)
        print_json(run);
    else
        putchar('\n');
    if (!error) return EXIT_OK;
    complain("%s", error_descs[error].doc);
    return EXIT_FAILED;
}

int cmd_run(int count, char **arguments)
{
    static const struct argp argp = {
        .options = options,
        .parser = parse,
        .doc = "Generate greedily with the engine alone, in this process, without the company.\v"
               "Example: troupe run --model models/tiny --ids 0,4082,20,14,20,4083,4084 "
               "--max-tokens 20 --json",
    };
    static run_t run; /* large */
    run_arguments_t given = { .model = embedded_model(), .ops = "auto", .max_tokens = 32 };
    parse_options(&argp, count, arguments, &given);
    run.given = &given;
    int code = !read_model(&run) ? EXIT_CONFIGURATION
               : !open_run(&run) ? EXIT_FAILED
                                 : generate_and_print(&run);
    close_run(&run);
    return code;
}
