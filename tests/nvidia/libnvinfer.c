/* TensorRT's objects as C++ lays them out: a table of methods, and for all but the parser an object of the same form behind it.

   Each method returns 0, save those of the builder and its kin, which return such an object. */
#include <stddef.h>

struct object { void **methods; struct object *behind; };

static struct object child;
static long zero(void) { return 0; }
static struct object *make(void) { return &child; }
static void *zeros[256], *makers[256];
static struct object innermost = {zeros, 0}, child_behind = {zeros, &innermost}, maker_behind = {makers, &innermost};
static struct object plain = {zeros, &child_behind}, maker = {zeros, &maker_behind};

__attribute__((constructor)) static void fill(void) {
    for (int index = 0; index < 256; index++) { zeros[index] = (void *)zero; makers[index] = (void *)make; }
    child = plain;
}

int getInferLibVersion(void) { return 101600; }
void *getPluginRegistry(void) { return &plain; }
void *createInferRuntime_INTERNAL(void *logger, int version) { return &maker; }
void *createInferBuilder_INTERNAL(void *logger, int version) { return &maker; }
