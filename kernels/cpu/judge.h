/* kernels/cpu/judge.h - the judge's ops by name: plain loops, sums in double, every dtype that a
 * tensor can have.
 *
 * Fast tables use the judge's version of an op wherever its time does not matter.
 */
#ifndef KERNELS_CPU_JUDGE_H
#define KERNELS_CPU_JUDGE_H

#include "../ops.h"

#define OP(op, params, doc) int judge_##op params;
#include "../ops.def"
#undef OP

#endif
