/* cli/cmd_status.c - troupe status: who is up, what they hold, how fast they are. */
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli.h"
#include "company.h"

typedef struct {
    config_options_t config;
    bool is_watch, is_json;
} status_arguments_t;

static const struct argp_option options[] = {
    { "watch", 'w', NULL, 0, "again every second, with rates, until Ctrl-C", 0 },
    { "json", 'j', NULL, 0, "as one JSON object; its shape is in PROTOCOL.md", 0 },
    { 0 },
};

static error_t parse(int key, char *value, struct argp_state *state)
{
    status_arguments_t *self = state->input;
    (void)value;
    if (key == ARGP_KEY_INIT)
        state->child_inputs[0] = &self->config;
    else if (key == 'w')
        self->is_watch = true;
    else if (key == 'j')
        self->is_json = true;
    else
        return ARGP_ERR_UNKNOWN;
    return 0;
}

static double number(const cJSON *object, const char *name)
{
    const cJSON *item = cJSON_GetObjectItem(object, name);
    return cJSON_IsNumber(item) ? item->valuedouble : 0;
}

static const char *text(const cJSON *object, const char *name)
{
    const char *value = cJSON_GetStringValue(cJSON_GetObjectItem(object, name));
    return value ? value : "";
}

/* Sum of a metric over the actors of a role; role NULL: of all. */
static double total(const cJSON *status, const char *role, const char *metric)
{
    double sum = 0;
    const cJSON *actor, *actors = cJSON_GetObjectItem(status, "actors");
    cJSON_ArrayForEach(actor, actors)
    {
        if (!role || strcmp(text(actor, "role"), role) == 0)
            sum += number(cJSON_GetObjectItem(actor, "metrics"), metric);
    }
    return sum;
}

static void print_duration(double us)
{
    double seconds = us / 1e6;
    if (seconds < 100)
        printf("%7.1f s", seconds);
    else if (seconds < 6000)
        printf("%5.0f min", seconds / 60);
    else
        printf("%7.1f h", seconds / 3600);
}

static void print_ratio(double used, double all)
{
    char both[32] = "-";
    if (all > 0) snprintf(both, sizeof both, "%.0f/%.0f", used, all);
    printf("  %11s", both);
}

/* What does not run has none, nor has anybody of whom the supervisor has not told yet. */
static void print_pid(double pid)
{
    if (pid > 0)
        printf("  %8.0f", pid);
    else
        printf("  %8s", "-");
}

static void print_actor(const cJSON *actor)
{
    char name[64];
    const cJSON *metrics = cJSON_GetObjectItem(actor, "metrics");
    bool is_up = cJSON_IsTrue(cJSON_GetObjectItem(actor, "is_up"));
    snprintf(name, sizeof name, "%s.%.0f", text(actor, "role"), number(actor, "index"));
    printf("%-18s %s%-5s%s ", name, style(stdout, is_up ? STYLE_GREEN : STYLE_RED),
           is_up ? "up" : "down", style(stdout, STYLE_PLAIN));
    print_duration(number(actor, "uptime_us"));
    printf("  %16.0f", number(actor, "epoch"));
    print_pid(number(actor, "pid"));
    printf("  %8.0f  %7.0f  %7.0f", number(actor, "restarts"), number(metrics, "requests_running"),
           number(metrics, "requests_waiting"));
    print_ratio(number(metrics, "kv_blocks_used"), number(metrics, "kv_blocks"));
    printf("  %8.1f", number(metrics, "resident_bytes") / 1048576);
    if (!is_up && *text(actor, "last_exit")) printf("  %s", text(actor, "last_exit"));
    putchar('\n');
}

/* Rates need an earlier look; without one the totals alone are told. */
static void print_totals(const cJSON *status, const cJSON *before)
{
    double seconds = before ? (number(status, "now_us") - number(before, "now_us")) / 1e6 : 0;
    double generated = total(status, "ingress", "generation_tokens_total"),
           prompts = total(status, "ingress", "prompt_tokens_total");
    printf("\nrequests: %.0f accepted, %.0f finished, %.0f failed, %.0f cancelled, %.0f rejected\n",
           total(status, "ingress", "requests_accepted_total"),
           total(status, "ingress", "requests_finished_total"),
           total(status, "ingress", "requests_failed_total"),
           total(status, "ingress", "requests_cancelled_total"),
           total(status, "ingress", "requests_rejected_total"));
    printf("tokens:   %.0f of prompts (%.0f from caches), %.0f generated", prompts,
           total(status, "ingress", "prompt_tokens_cached_total"), generated);
    if (seconds > 0)
        printf("; now %.1f prompt tokens/s, %.1f generated/s",
               fmax(0, prompts - total(before, "ingress", "prompt_tokens_total")) / seconds,
               fmax(0, generated - total(before, "ingress", "generation_tokens_total")) / seconds);
    putchar('\n');
}

/* All of it is the director's word: our own configuration may be another than the company's. */
static void print_status(const cJSON *status, const cJSON *before)
{
    const cJSON *actor, *actors = cJSON_GetObjectItem(status, "actors");
    printf("%sTroupe %s%s, up for", style(stdout, STYLE_BOLD), text(status, "version"),
           style(stdout, STYLE_PLAIN));
    print_duration(number(status, "uptime_us"));
    printf(", %u of %d actors, http://%s\n\n", company_up_count(status), cJSON_GetArraySize(actors),
           company_address(text(status, "listen")).text);
    printf("%s%-18s %-5s %9s  %16s  %8s  %8s  %7s  %7s  %11s  %8s%s\n", style(stdout, STYLE_BOLD),
           "ACTOR", "STATE", "UPTIME", "EPOCH", "PID", "RESTARTS", "RUNNING", "WAITING",
           "KV BLOCKS", "MIB", style(stdout, STYLE_PLAIN));
    cJSON_ArrayForEach(actor, actors) print_actor(actor);
    print_totals(status, before);
}

static int show(const status_arguments_t *given, const config_t *config, client_t *director)
{
    cJSON *before = NULL;
    for (;;) {
        cJSON *status = company_status(director, 3000);
        if (!status) {
            cJSON_Delete(before);
            return company_unreachable(config);
        }
        if (given->is_watch && is_terminal(stdout)) fputs("\033[H\033[2J", stdout);
        char *json = given->is_json ? cJSON_PrintUnformatted(status) : NULL;
        if (json)
            puts(json);
        else
            print_status(status, before);
        free(json);
        fflush(stdout);
        cJSON_Delete(before);
        before = status;
        if (!given->is_watch || ferror(stdout)) break;
        sleep(1);
    }
    cJSON_Delete(before);
    return EXIT_OK;
}

int cmd_status(int count, char **arguments)
{
    static const struct argp_child children[] = { { &config_argp, 0, NULL, 0 }, { 0 } };
    static const struct argp argp = { .options = options,
                                      .parser = parse,
                                      .children = children,
                                      .doc = "Show the actors of the company on this machine: "
                                             "state, epoch (its life), load, KV, rates." };
    status_arguments_t given = { .is_watch = false };
    parse_options(&argp, count, arguments, &given);
    const config_loaded_t *loaded = config_open(&given.config, true);
    if (!loaded) return EXIT_CONFIGURATION;
    client_t *director = client_new(&loaded->config, (address_t){ ROLE_director, 0 });
    if (!director) return EXIT_FAILED;
    int code = show(&given, &loaded->config, director);
    client_destroy(&director);
    return code;
}
