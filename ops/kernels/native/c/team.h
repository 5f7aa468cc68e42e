/* Threads that go through the phases of a step together. */
#pragma once
#include <omp.h>
#include <sched.h>
#if defined(__linux__)
#include <linux/futex.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "vectors.h"

/* Turns of a waiting thread's loop before it sleeps, 100 to 200 us: phases end closer together where every thread has a
 * core. Where not, only one that sleeps leaves its core to the thread it waits for, and gets it back at once. */
#define PATIENCE 6000

/* What a thread reads before it is needed, while it waits for the others. */
typedef struct {
    const char *at, *end;
} Ahead;

typedef struct {
    int threads, patience;
    int arrived __attribute__((aligned(64))); /* over all phases */
    int asleep;
} Team;

INLINE void pause_a_little(void) {
#if defined(__x86_64__)
    _mm_pause();
#endif
}

/* Sleeps until all have arrived, or a little. */
static void sleep_until(Team *team, int wanted) {
#if defined(__linux__)
    __atomic_fetch_add(&team->asleep, 1, __ATOMIC_SEQ_CST);
    int now = __atomic_load_n(&team->arrived, __ATOMIC_SEQ_CST);
    if (now < wanted) syscall(SYS_futex, &team->arrived, FUTEX_WAIT_PRIVATE, now, 0, 0, 0);
    __atomic_fetch_sub(&team->asleep, 1, __ATOMIC_SEQ_CST);
#else
    (void)team, (void)wanted;
    sched_yield();
#endif
}

/* Waits until every thread is here, which ends the phase, counted from 1. */
static void meet(Team *team, int phase, Ahead *ahead) {
    int wanted = phase * team->threads;
    if (__atomic_add_fetch(&team->arrived, 1, __ATOMIC_SEQ_CST) == wanted) {
#if defined(__linux__)
        if (__atomic_load_n(&team->asleep, __ATOMIC_SEQ_CST))
            syscall(SYS_futex, &team->arrived, FUTEX_WAKE_PRIVATE, team->threads, 0, 0, 0);
#endif
        return;
    }
    for (int turns = 0; __atomic_load_n(&team->arrived, __ATOMIC_ACQUIRE) < wanted; turns++) {
        if (ahead->at < ahead->end) {
            fetch(ahead->at, 128);
            ahead->at += 128;
        } else if (turns < team->patience) {
            pause_a_little();
        } else {
            sleep_until(team, wanted);
        }
    }
}
