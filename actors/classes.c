/* actors/classes.c - the table of all classes, by role. */
#include "../runtime/world.h"
#include "decode_lb.h"
#include "decode_worker.h"
#include "director.h"
#include "ep_balancer.h"
#include "ingress.h"
#include "kv_store.h"
#include "prefill_lb.h"
#include "prefill_worker.h"
#include "supervisor.h"

const actor_class_t *const actor_classes[ROLES_MAX] = {
    [ROLE_ingress] = &ingress_class,
    [ROLE_prefill_lb] = &prefill_lb_class,
    [ROLE_prefill_worker] = &prefill_worker_class,
    [ROLE_kv_store] = &kv_store_class,
    [ROLE_decode_lb] = &decode_lb_class,
    [ROLE_decode_worker] = &decode_worker_class,
    [ROLE_ep_balancer] = &ep_balancer_class,
    [ROLE_director] = &director_class,
    [ROLE_supervisor] = &supervisor_class,
};
