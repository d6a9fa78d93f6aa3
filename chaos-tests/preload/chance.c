/*
 * Gives a process the same random numbers in each run: getrandom() is answered
 * by a generator (splitmix64) that every thread begins anew, so that threads
 * do not depend on each other's pace. For worlds that have to repeat
 * themselves; never for anything that is to be secret.
 */
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

static __thread uint64_t state;

static uint64_t next(void)
{
    uint64_t mixed = (state += 0x9e3779b97f4a7c15ULL);
    mixed = (mixed ^ (mixed >> 30)) * 0xbf58476d1ce4e5b9ULL;
    mixed = (mixed ^ (mixed >> 27)) * 0x94d049bb133111ebULL;
    return mixed ^ (mixed >> 31);
}

ssize_t getrandom(void *buffer, size_t length, unsigned int flags)
{
    unsigned char *bytes = buffer;
    (void)flags;
    for (size_t at = 0; at < length; at++)
        bytes[at] = (unsigned char)next();
    return (ssize_t)length;
}
