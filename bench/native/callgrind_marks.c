// Between two marks valgrind's callgrind counts what a benchmark asks about; without valgrind they are nothing.
#include <valgrind/callgrind.h>

void forget_counts(void) { CALLGRIND_ZERO_STATS; }

void write_counts(const char* name) { CALLGRIND_DUMP_STATS_AT(name); }
