/* One process that burns a CPU, holds 100 MiB, and writes to a disk, as an ordinary user. */
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

int main(void) {
    size_t size = 100u << 20;
    char *held = malloc(size);
    memset(held, 1, size);
    int file = open("/data/file", O_RDWR | O_CREAT, 0600);
    time_t last = 0;
    for (size_t at = 0;; at = (at + 4096) % size) {
        held[at]++;
        if (at == 0 && time(NULL) != last) {
            last = time(NULL);
            pwrite(file, held, 1 << 20, 0);
            fsync(file);
        }
    }
}
