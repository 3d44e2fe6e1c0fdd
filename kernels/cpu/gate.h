/* kernels/cpu/gate.h - the choice of experts for one row, shared by all CPU tables once the logits
 * are known. */
#ifndef KERNELS_CPU_GATE_H
#define KERNELS_CPU_GATE_H

#include "../ops.h"

/* Room for one row: [experts] each. */
typedef struct {
    float *logits, *scores, *choices, *group_scores;
    uint8_t *is_taken;
} gate_room_t;

/* Whether the counts fit each other: whole groups, and enough experts in the groups that are kept.
 */
int gate_is_valid(const gate_t *gate);

/* Scratch for one row; ENOMEM when the queue has too little. */
int gate_room_take(queue_t *q, const gate_t *gate, gate_room_t *room);

/* From room->logits to the row's ids and weights [top_k], best first. */
void gate_choose(const gate_t *gate, const gate_room_t *room, const float *bias, uint32_t *ids,
                 float *weights);

#endif
