/* Does what the checkers are to see. */

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int main(int argc, char **argv) {
  volatile int one = argc > 1;
  if (!one) return 1;
  if (strcmp(argv[1], "overflow") == 0) {
    char *bytes = malloc(8);
    if (!bytes) return 1;
    memset(bytes, 1, 8);
    volatile char *volatile hidden = bytes; /* from the compiler, which would see too much */
    printf("%d\n", hidden[8 * one]);
    free(bytes);
  } else if (strcmp(argv[1], "leak") == 0) {
    volatile char *bytes = malloc(64);
    if (!bytes) return 1;
    bytes[0] = 1;
    bytes = NULL;
  } else if (strcmp(argv[1], "signed") == 0) {
    printf("%d\n", INT_MAX + one);
  }
  return 0;
}
