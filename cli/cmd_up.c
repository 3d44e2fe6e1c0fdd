/* cli/cmd_up.c - troupe up: the whole company on this machine.
 *
 * This process is the supervisor.  What it was told (file and --set) is written as one file into
 * the company's directory, where `troupe status`, `chat` and `down` read it.  Its children read it
 * through our descriptor: they can be restarted though somebody has deleted the file.  A thread
 * watches until the company is ready and then says what to try.
 */
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <unistd.h>

#include "../runtime/base/company.h"
#include "../runtime/base/log.h"
#include "../runtime/world.h"
#include "cli.h"
#include "company.h"

typedef struct {
    config_options_t config;
    bool is_one_process;
} up_arguments_t;

enum { KEY_ONE_PROCESS = 256, OTHERS_US = 15 * 1000 * 1000 };
static const struct argp_option options[] = {
    { "one-process", KEY_ONE_PROCESS, NULL, 0,
      "all actors as threads of this process, for debugging", 0 },
    { 0 },
};

static error_t parse(int key, char *value, struct argp_state *state)
{
    up_arguments_t *self = state->input;
    (void)value;
    if (key == ARGP_KEY_INIT)
        state->child_inputs[0] = &self->config;
    else if (key == KEY_ONE_PROCESS)
        self->is_one_process = true;
    else
        return ARGP_ERR_UNKNOWN;
    return 0;
}

/* ---- what is written into the directory ---- */

/* Children and other commands may run elsewhere: paths become absolute.  An empty one stays empty.
 */
static bool make_absolute(const char *key, char *path, size_t cap)
{
    if (!*path) return true;
    char *real = realpath(path, NULL);
    bool is_good = real && strlen(real) < cap;
    if (!is_good) complain("%s %s: %s", key, path, strerror(real ? ENAMETOOLONG : errno));
    if (is_good) snprintf(path, cap, "%s", real);
    free(real);
    return is_good;
}

static bool make_paths_absolute(config_t *config)
{
    return make_absolute("model.path", config->model.path, sizeof config->model.path) &&
           make_absolute("wire.keys", config->wire.keys, sizeof config->wire.keys);
}

/* Mode 0600: the file may hold API keys.  Its descriptor; -1: standard error has said why. */
static int write_configuration(const config_loaded_t *loaded, const char *path)
{
    size_t size = config_show(loaded, NULL, 0);
    char *text = malloc(size + 1);
    if (!text) return -1;
    config_show(loaded, text, size + 1);
    int descriptor = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
    bool is_written = descriptor >= 0 && write(descriptor, text, size) == (ssize_t)size;
    if (!is_written) complain("%s: %s", path, strerror(errno));
    free(text);
    if (is_written) return descriptor;
    if (descriptor >= 0) close(descriptor);
    return -1;
}

/* On a terminal the log would bury what a newcomer should read: it goes to a file beside the
 * sockets. */
static void choose_log(config_loaded_t *loaded, const char *configuration)
{
    if (loaded->config.log.file[0] || !is_terminal(stderr)) return;
    int size = (int)strlen(configuration) - (int)strlen("company.yaml");
    snprintf(loaded->config.log.file, sizeof loaded->config.log.file, "%.*stroupe.log", size,
             configuration);
}

/* ---- until it is ready ---- */

typedef struct {
    const config_t *config;
    atomic_bool is_over;
} watch_t;

/* A command finds the company in the default directory by itself, and everything else there. */
static void print_chat(const config_t *config)
{
    char *directory = realpath(config->wire.directory, NULL); /* NULL: it is the default */
    printf("  %s chat", program_invocation_name);
    if (directory) printf(" --set 'wire.directory=%s'", directory);
    fputs("\n\n", stdout);
    free(directory);
}

/* Keys are named, not printed: what a terminal shows is often kept or shared. */
static void print_examples(const config_t *config, const char *address, const char *model)
{
    bool has_keys = config->http.api_keys_count > 0;
    if (has_keys) printf("  export TROUPE_API_KEY='one of http.api_keys'\n\n");
    printf("  curl -N http://%s/v1/chat/completions -H 'Content-Type: application/json' \\\n%s"
           "       -d '{\"messages\":[{\"role\":\"user\",\"content\":\"What is 946 - "
           "23?\"}],\"stream\":true}'\n\n",
           address, has_keys ? "       -H \"Authorization: Bearer $TROUPE_API_KEY\" \\\n" : "");
    print_chat(config);
    printf("  python3 -c \"from openai import OpenAI; print(OpenAI(base_url='http://%s/v1', "
           "api_key='%s').chat.completions"
           ".create(model='%s', messages=[{'role': 'user', 'content': 'What is the meaning of "
           "given?'}]).choices[0].message.content)\"\n\n",
           address, has_keys ? "$TROUPE_API_KEY" : "none", model);
}

static void print_ready(const config_t *config, double seconds)
{
    const char *bold = style(stdout, STYLE_BOLD), *plain = style(stdout, STYLE_PLAIN);
    const char *name = strrchr(config->model.path, '/');
    const char *model = config->model.name[0] ? config->model.name
                        : name                ? name + 1
                                              : config->model.path;
    company_address_t address = company_address(config->http.listen);
    printf("\n%sTroupe serves %s at http://%s%s (%u actors, ready after %.1f s)\n\nTry, in another "
           "terminal:\n\n",
           bold, model, address.text, plain, company_size(config), seconds);
    print_examples(config, address.text, model);
    if (config->log.file[0]) printf("The log is in %s. ", config->log.file);
    printf("Ctrl-C stops everything.\n");
    fflush(stdout);
}

static void *watch(void *argument)
{
    watch_t *self = argument;
    uint64_t start_us = now_us();
    uint32_t all = company_size(self->config), up = 0;
    client_t *director = client_new(self->config, (address_t){ ROLE_director, 0 });
    while (director && !atomic_load(&self->is_over)) {
        cJSON *status = company_status(director, 200);
        if (status) up = company_up_count(status);
        cJSON_Delete(status);
        progress_show(up < all ? "starting the actors" : "loading the model", up, all);
        /* Without the first condition somebody else's server on our port would do. */
        if (up == all && company_is_ready(self->config)) {
            progress_clear();
            print_ready(self->config, (double)(now_us() - start_us) / 1e6);
            break;
        }
        usleep(50 * 1000);
    }
    client_destroy(&director);
    return NULL;
}

/* Actors of a supervisor that was killed finish their requests first; they hold our names and the
 * port. */
static bool await_others(const config_t *config)
{
    uint64_t start_us = now_us(), waited_us = 0;
    while (world_is_inhabited(config) && waited_us < OTHERS_US) {
        progress_show("waiting for actors of the last company to end", waited_us, OTHERS_US);
        usleep(20 * 1000);
        waited_us = now_us() - start_us;
    }
    progress_clear();
    return !world_is_inhabited(config);
}

/* ---- the command ---- */

/* Prints what went wrong, once; the log has the details. */
static int supervise(const config_loaded_t *loaded, int configuration, bool is_one_process)
{
    char program[4096], configuration_file[64];
    ssize_t size = readlink("/proc/self/exe", program, sizeof program - 1);
    if (size < 0) return EXIT_FAILED;
    program[size] = 0;
    snprintf(configuration_file, sizeof configuration_file, "/proc/%d/fd/%d", (int)getpid(),
             configuration);
    world_why_t why = { "" };
    watch_t watched = { .config = &loaded->config };
    world_options_t world = {
        .class = actor_classes[ROLE_supervisor],
        .config = &loaded->config,
        .program = program,
        .config_file = configuration_file,
        .is_one_process = is_one_process,
        .why = &why,
    };
    if (!served_model_key(&loaded->config, &world.model_key)) return EXIT_CONFIGURATION;
    pthread_t thread;
    bool is_watched = pthread_create(&thread, NULL, watch, &watched) == 0;
    err_t error = world_run(&world);
    atomic_store(&watched.is_over, true);
    if (is_watched) pthread_join(thread, NULL);
    progress_clear();
    if (!error) return EXIT_OK;
    complain("%s%s%s", why.text[0] ? why.text : error_descs[error].doc,
             loaded->config.log.file[0] ? "; the log is " : "", loaded->config.log.file);
    return EXIT_FAILED;
}

/* One company has a directory, from before it touches the configuration, which its actors read,
 * until it has tidied up: one that was stopped just now takes a moment.  -1: refused, and standard
 * error has said why. */
static int claim(const config_t *config)
{
    enum { TRIES = 50, PAUSE_US = 20000 };
    char directory[256] = "";
    int descriptor = -1, held = -1;
    if (world_directory(config, directory, sizeof directory) == ERR_OK)
        descriptor = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    for (int i = 0; descriptor >= 0 && held != 0 && i < TRIES; i++) {
        if (i > 0) usleep(PAUSE_US);
        held = flock(descriptor, LOCK_EX | LOCK_NB);
    }
    if (held == 0) return descriptor;
    if (errno == EWOULDBLOCK)
        complain("a company already runs here (%s); `troupe down` stops it", directory);
    else
        complain("%s: %s", directory, strerror(errno));
    if (descriptor >= 0) close(descriptor);
    return -1;
}

static int start_here(config_loaded_t *loaded, const char *configuration, bool is_one_process)
{
    if (!await_others(&loaded->config)) {
        complain("actors without a supervisor still run here (%s)", configuration);
        return EXIT_FAILED;
    }
    choose_log(loaded, configuration);
    int written = open_log(&loaded->config) ? write_configuration(loaded, configuration) : -1;
    if (written < 0) return EXIT_CONFIGURATION;
    int code = supervise(loaded, written, is_one_process);
    unlink(configuration);
    close(written);
    return code;
}

int cmd_up(int count, char **arguments)
{
    static const struct argp_child children[] = { { &config_argp, 0, NULL, 0 }, { 0 } };
    static const struct argp argp = {
        .options = options,
        .parser = parse,
        .children = children,
        .doc = "Start the whole company on this machine, serve a model, and say what to try. "
               "Ctrl-C stops everything in order.\v"
               "Without options it serves models/tiny at http://127.0.0.1:8000. Example:\n"
               "  troupe up --set model.path=/models/DeepSeek-V3 --set http.listen=127.0.0.1:9000",
    };
    up_arguments_t given = { .is_one_process = false };
    char configuration[512];
    parse_options(&argp, count, arguments, &given);
    world_why_t why = { "" };
    config_loaded_t *loaded = config_open(&given.config, false);
    if (!loaded || !make_paths_absolute(&loaded->config)) return EXIT_CONFIGURATION;
    if (world_raise_descriptors(&loaded->config, given.is_one_process, &why) != ERR_OK) {
        complain("%s", why.text);
        return EXIT_CONFIGURATION;
    }
    if (!company_file(&loaded->config, configuration, sizeof configuration))
        return EXIT_CONFIGURATION;
    int claimed = claim(&loaded->config);
    if (claimed < 0) return EXIT_FAILED;
    int code = start_here(loaded, configuration, given.is_one_process);
    close(claimed);
    return code;
}
