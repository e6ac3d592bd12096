/* One static program for pods: `burn`, `hold MIB`, or `brief SECONDS CODE`. */
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

int main(int count, char **arguments) {
    if (count == 3 && !strcmp(arguments[1], "hold")) {
        size_t size = (size_t)atoi(arguments[2]) << 20;
        for (size_t at = 0; at < size; at += 1 << 20) {
            memset(malloc(1 << 20), 1, 1 << 20);
            usleep(20000);
        }
        for (;;)
            pause();
    }
    time_t end = count == 4 ? time(NULL) + atoi(arguments[2]) : 0;
    volatile unsigned long work = 0;
    while (!end || time(NULL) < end)
        for (int turn = 0; turn < 100000; turn++)
            work++;
    return atoi(arguments[3]);
}
