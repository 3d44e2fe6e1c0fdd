/* tests/world/test_curve.c - on tcp only those who hold a key of the company are heard, and only
 * under their own name. */
#include "zmtp.h"

#include <netinet/in.h>
#ifdef HAVE_SODIUM
#include <sodium.h>
#endif
#include <sys/un.h>
#include <zmq.h>

#include "runtime/base/company.h"
#include "runtime/zmq/state.h"

static const address_t ingress = { ROLE_ingress, 0 }, prefill_lb = { ROLE_prefill_lb, 0 };

typedef struct {
    config_t *config;
    char keys[64];
} scene_t;

/* A certificate as `troupe keys` writes it (CZMQ's format), made by libzmq alone. */
static void write_certificate(const char *path, mode_t mode)
{
    char public_key[41], secret_key[41], secret_path[300];
    assert_int_equal(zmq_curve_keypair(public_key, secret_key), 0);
    snprintf(secret_path, sizeof secret_path, "%s_secret", path);
    for (int i = 0; i < 2; i++) {
        FILE *file = fopen(i ? secret_path : path, "w");
        assert_non_null(file);
        fprintf(file, "metadata\ncurve\n    public-key = \"%s\"\n", public_key);
        if (i) fprintf(file, "    secret-key = \"%s\"\n", secret_key);
        assert_int_equal(fclose(file), 0);
        assert_int_equal(chmod(i ? secret_path : path, mode), 0);
    }
}

static void write_one(const scene_t *self, const char *role, uint32_t index)
{
    char path[256];
    snprintf(path, sizeof path, "%s/%s-%u.cert", self->keys, role, index);
    write_certificate(path, 0600);
}

static bool is_free(int port)
{
    struct sockaddr_in address = { .sin_family = AF_INET,
                                   .sin_port = htons((uint16_t)port),
                                   .sin_addr = { htonl(INADDR_LOOPBACK) } };
    int descriptor = socket(AF_INET, SOCK_STREAM, 0);
    bool is_bound = bind(descriptor, (struct sockaddr *)&address, sizeof address) == 0;
    close(descriptor);
    return is_bound;
}

enum { PORTS_FIRST = 17000, PORTS_RANGE = 16, RANGES = 900 };

/* Keeps other processes of this test away, until this one ends. */
static bool claim_range(int base)
{
    struct sockaddr_un name = { .sun_family = AF_UNIX };
    int descriptor = socket(AF_UNIX, SOCK_STREAM, 0);
    snprintf(name.sun_path + 1, sizeof name.sun_path - 1, "troupe-test-ports-%d", base);
    if (bind(descriptor, (struct sockaddr *)&name, sizeof name) == 0) return true;
    close(descriptor);
    return false;
}

/* Ports that nobody listens on now, below those that the kernel gives to outgoing connections. */
static int free_ports(void)
{
    for (int i = 0; i < RANGES; i++) {
        int base = PORTS_FIRST + (getpid() + i) % RANGES * PORTS_RANGE, count = 0;
        if (!claim_range(base)) continue;
        while (count < PORTS_RANGE && is_free(base + count)) count++;
        if (count == PORTS_RANGE) return base;
    }
    fail_msg("no range of ports is free");
    return 0;
}

static void scene_open(scene_t *self)
{
    self->config = toy_config();
    self->config->wire.carrier = 1;
    self->config->wire.base_port = free_ports();
    snprintf(self->keys, sizeof self->keys, "/tmp/troupe-keys-XXXXXX");
    assert_non_null(mkdtemp(self->keys));
    snprintf(self->config->wire.keys, sizeof self->config->wire.keys, "%s", self->keys);
    write_one(self, "client", 0);
    for (role_t role = 0; role < ROLES_MAX; role++)
        for (uint32_t i = 0; i < company_count(self->config, role); i++)
            write_one(self, role_names[role], i);
}

static void scene_close(scene_t *self)
{
    DIR *directory = opendir(self->keys);
    assert_non_null(directory);
    for (struct dirent *entry; (entry = readdir(directory));)
        (void)unlinkat(dirfd(directory), entry->d_name, 0);
    closedir(directory);
    assert_int_equal(rmdir(self->keys), 0);
    toy_config_free(self->config);
}

static void read_key(const scene_t *self, const char *name, const char *field, char key[41])
{
    char path[256], line[256];
    snprintf(path, sizeof path, "%s/%s", self->keys, name);
    FILE *file = fopen(path, "r");
    assert_non_null(file);
    key[0] = 0;
    while (fgets(line, sizeof line, file)) {
        char *value = strstr(line, field) ? strchr(line, '"') : NULL;
        if (value) snprintf(key, 41, "%s", value + 1);
    }
    fclose(file);
    assert_int_equal(strlen(key), 40);
}

/* If this failed, a company on several hosts could not speak at all. */
static void test_curve_company_keys_messages_pass(void **state)
{
    scene_t scene;
    scene_open(&scene);
    toy_t *a = toy_start(scene.config, ingress, 1), *b = toy_start(scene.config, prefill_lb, 2);
    assert_true(toy_wait(a, MSG_peer_up, 1) && toy_wait(b, MSG_peer_up, 1));
    assert_int_equal(toy_send(a, prefill_lb, 1, 100), ERR_OK);
    assert_true(toy_wait(b, MSG_cancel, 100));
    assert_int_equal(toy_send(b, ingress, 1, 100), ERR_OK);
    assert_true(toy_wait(a, MSG_cancel, 100));
    assert_int_equal(toy_stop(a), ERR_OK);
    assert_int_equal(toy_stop(b), ERR_OK);
    scene_close(&scene);
}

/* Connect to prefill_lb as ingress.0 with these keys (NULL: without CURVE) and say hello and cancel
 * for a second. */
static void intrude(const scene_t *scene, const char *public_key, const char *secret_key)
{
    char endpoint[256], server_key[41];
    uint8_t buf[512];
    int linger_ms = 0;
    void *context = zmq_ctx_new(), *socket = zmq_socket(context, ZMQ_DEALER);
    read_key(scene, "prefill_lb-0.cert", "public-key", server_key);
    assert_true(world_endpoint(scene->config, prefill_lb, endpoint, sizeof endpoint) > 0);
    assert_int_equal(zmq_setsockopt(socket, ZMQ_ROUTING_ID, "ingress.0", 9), 0);
    assert_int_equal(zmq_setsockopt(socket, ZMQ_LINGER, &linger_ms, sizeof linger_ms), 0);
    if (public_key) {
        assert_int_equal(zmq_setsockopt(socket, ZMQ_CURVE_SERVERKEY, server_key, 41), 0);
        assert_int_equal(zmq_setsockopt(socket, ZMQ_CURVE_PUBLICKEY, public_key, 41), 0);
        assert_int_equal(zmq_setsockopt(socket, ZMQ_CURVE_SECRETKEY, secret_key, 41), 0);
    }
    assert_int_equal(zmq_connect(socket, endpoint), 0);
    for (int i = 0; i < 20; i++) {
        msg_t m;
        msg_init(&m, i == 0 ? MSG_hello : MSG_cancel);
        m.header.epoch = 1;
        if (i == 0) m.hello.role = ROLE_ingress;
        size_t size = msg_encode(&m, buf, sizeof buf);
        (void)zmq_send(socket, buf, size, ZMQ_DONTWAIT);
        usleep(50000);
    }
    (void)zmq_close(socket);
    (void)zmq_ctx_term(context);
}

/* If this failed, whoever reaches a port could give orders to the company. */
static void test_curve_unknown_borrowed_or_no_key_is_refused(void **state)
{
    scene_t scene;
    char public_key[41], secret_key[41];
    scene_open(&scene);
    toy_t *b = toy_start(scene.config, prefill_lb, 2);
    intrude(&scene, NULL, NULL);
    assert_int_equal(zmq_curve_keypair(public_key, secret_key), 0);
    intrude(&scene, public_key, secret_key);
    /* A key of the company, but not ingress's: kv_store may not speak as ingress.0. */
    read_key(&scene, "kv_store-0.cert", "public-key", public_key);
    read_key(&scene, "kv_store-0.cert_secret", "secret-key", secret_key);
    intrude(&scene, public_key, secret_key);
    assert_int_equal(toy_count(b, MSG_peer_up), 0);
    assert_int_equal(toy_count(b, MSG_cancel), 0);
    /* Proof that the intruder would have been heard: the same with ingress's own key. */
    read_key(&scene, "ingress-0.cert", "public-key", public_key);
    read_key(&scene, "ingress-0.cert_secret", "secret-key", secret_key);
    for (int i = 0; i < 20 && toy_count(b, MSG_cancel) == 0; i++)
        intrude(&scene, public_key, secret_key);
    assert_true(toy_count(b, MSG_peer_up) > 0);
    assert_true(toy_count(b, MSG_cancel) > 0);
    assert_int_equal(toy_stop(b), ERR_OK);
    scene_close(&scene);
}

/* If this failed, a company without keys, or with keys that others can read, would believe itself
 * safe. */
static void test_curve_missing_or_open_secret_is_refused(void **state)
{
    scene_t scene;
    char path[256];
    actor_class_t class;
    scene_open(&scene);
    toy_class(&class, ROLE_prefill_lb);
    world_options_t options = { .class = &class, .config = scene.config, .epoch = 3 };
    class.init = NULL;
    snprintf(path, sizeof path, "%s/prefill_lb-0.cert_secret", scene.keys);
    assert_int_equal(chmod(path, 0644), 0);
    assert_int_equal(world_run(&options), ERR_CONFIG);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(world_run(&options), ERR_CONFIG);
    scene_close(&scene);
}

#ifdef HAVE_SODIUM

/* A client that speaks CURVE (RFC 26) by hand: C is its key, c one for this connection; S and s are
 * the server's. */
typedef struct {
    int descriptor;
    uint64_t nonce;
    uint8_t C_public[32], C_secret[32], c_public[32], c_secret[32], S[32], s[32];
} curve_client_t;

enum { BOX = crypto_box_MACBYTES };

/* A short nonce of the message that is written, and its box behind it; returns the bytes of both.
 */
static size_t add_box(curve_client_t *self, uint8_t *out, const char *prefix, const uint8_t *text,
                      size_t size, const uint8_t *to)
{
    uint8_t nonce[crypto_box_NONCEBYTES];
    memcpy(nonce, prefix, 16);
    self->nonce++;
    for (int i = 0; i < 8; i++) nonce[16 + i] = out[i] = (uint8_t)(self->nonce >> (56 - 8 * i));
    assert_int_equal(crypto_box_easy(out + 8, text, size, nonce, to, self->c_secret), 0);
    return 8 + BOX + size;
}

static void say_hello(curve_client_t *self)
{
    static const uint8_t zeros[64];
    uint8_t hello[200] = "\5HELLO\1";
    memcpy(hello + 80, self->c_public, 32);
    size_t size = 112 + add_box(self, hello + 112, "CurveZMQHELLO---", zeros, 64, self->S);
    assert_int_equal(size, sizeof hello);
    zmtp_say(self->descriptor, ZMTP_COMMAND, hello, size);
}

/* The server's key of this connection, and its cookie. */
static void hear_welcome(curve_client_t *self, uint8_t cookie[96])
{
    static zmtp_frame_t frame;
    uint8_t nonce[crypto_box_NONCEBYTES] = "WELCOME-", text[128];
    assert_true(zmtp_hear(self->descriptor, &frame, 10000));
    assert_true(zmtp_is(&frame, "WELCOME") && frame.size == 168);
    memcpy(nonce + 8, frame.bytes + 8, 16);
    assert_int_equal(
        crypto_box_open_easy(text, frame.bytes + 24, 144, nonce, self->S, self->c_secret), 0);
    memcpy(self->s, text, 32);
    memcpy(cookie, text + 32, 96);
}

static void say_initiate(curve_client_t *self, const uint8_t cookie[96], const uint8_t *id,
                         size_t id_size)
{
    static zmtp_frame_t frame;
    static uint8_t text[ZMTP_FRAME_BYTES];
    uint8_t nonce[crypto_box_NONCEBYTES] = "VOUCH---", vouch[64];
    memcpy(vouch, self->c_public, 32);
    memcpy(vouch + 32, self->S, 32);
    randombytes_buf(nonce + 8, 16);
    memcpy(text, self->C_public, 32);
    memcpy(text + 32, nonce + 8, 16);
    assert_int_equal(crypto_box_easy(text + 48, vouch, 64, nonce, self->s, self->C_secret), 0);
    size_t size = 128;
    size += zmtp_property(text + size, "Socket-Type", "DEALER", 6);
    size += zmtp_property(text + size, "Identity", id, id_size);
    memcpy(frame.bytes, "\10INITIATE", 9);
    memcpy(frame.bytes + 9, cookie, 96);
    size = 105 + add_box(self, frame.bytes + 105, "CurveZMQINITIATE", text, size, self->s);
    zmtp_say(self->descriptor, ZMTP_COMMAND, frame.bytes, size);
}

/* False: the server does not let it in. */
static bool curve_client_open(curve_client_t *self, const scene_t *scene, const uint8_t *id,
                              size_t id_size)
{
    static zmtp_frame_t frame;
    char endpoint[256], key[41];
    uint8_t cookie[96];
    self->nonce = 0;
    read_key(scene, "ingress-0.cert", "public-key", key);
    assert_non_null(zmq_z85_decode(self->S, key));
    read_key(scene, "client-0.cert", "public-key", key);
    assert_non_null(zmq_z85_decode(self->C_public, key));
    read_key(scene, "client-0.cert_secret", "secret-key", key);
    assert_non_null(zmq_z85_decode(self->C_secret, key));
    assert_int_equal(crypto_box_keypair(self->c_public, self->c_secret), 0);
    assert_true(world_endpoint(scene->config, ingress, endpoint, sizeof endpoint) > 0);
    self->descriptor = zmtp_connect(endpoint);
    zmtp_greet(self->descriptor, "CURVE");
    say_hello(self);
    hear_welcome(self, cookie);
    say_initiate(self, cookie, id, id_size);
    return zmtp_hear(self->descriptor, &frame, 2000) && zmtp_is(&frame, "READY");
}

static void curve_client_cancels(curve_client_t *self, uint64_t number)
{
    uint8_t text[256] = { 0 }, out[512] = "\7MESSAGE"; /* text begins with its flags: none */
    msg_t m;
    msg_init(&m, MSG_client_cancel);
    m.header.epoch = 77;
    m.header.request.lo = number;
    size_t size = 1 + msg_encode(&m, text + 1, sizeof text - 1);
    size = 8 + add_box(self, out + 8, "CurveZMQMESSAGEC", text, size, self->s);
    zmtp_say(self->descriptor, ZMTP_MESSAGE, out, size);
}

static int task_refused(toy_t *toy, actor_t *world, void *arg)
{
    return (int)world->metrics.slots[metric_descs[METRIC_frames_refused_total].slot];
}

/* If this failed, a client with the key of clients could end ingress by a routing id that is longer
 * than ZMTP allows: whether it is an actor's is asked before anything else. */
static void test_curve_routing_ids_longer_than_any_are_refused(void **state)
{
    static const struct {
        size_t size;
        bool is_heard;
    } cases[] = { { 3, true }, { 200, true }, { 255, true }, { 256, false }, { 300, false } };
    static uint8_t id[300];
    scene_t scene;
    uint32_t heard = 0;
    int refused = 0;
    memset(id, 'a', sizeof id);
    assert_true(sodium_init() >= 0);
    scene_open(&scene);
    toy_t *toy = toy_start(scene.config, ingress, 5);
    for (uint32_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        curve_client_t client;
        assert_true(curve_client_open(&client, &scene, id, cases[i].size));
        curve_client_cancels(&client, i);
        if (cases[i].is_heard)
            heard++;
        else
            refused++;
        assert_true(toy_wait(toy, MSG_client_cancel, heard));
        for (int k = 0; k < 500 && toy_do(toy, task_refused, NULL) < refused; k++) usleep(10000);
        assert_int_equal(toy_do(toy, task_refused, NULL), refused);
        assert_int_equal(toy_count(toy, MSG_client_cancel), heard);
        close(client.descriptor);
    }
    assert_int_equal(toy_stop(toy), ERR_OK);
    scene_close(&scene);
}

#endif

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_curve_company_keys_messages_pass),
        cmocka_unit_test(test_curve_unknown_borrowed_or_no_key_is_refused),
        cmocka_unit_test(test_curve_missing_or_open_secret_is_refused),
#ifdef HAVE_SODIUM
        cmocka_unit_test(test_curve_routing_ids_longer_than_any_are_refused),
#endif
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
