/* Objects: references, who is alive, and what is asked of those that are not. */
#include "fake.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* GNU's runtime. */
size_t class_getInstanceSize(Class of);
const char *class_getName(Class of);
Class objc_lookUpClass(const char *name);
const char *sel_getName(SEL selector);
typedef id (*message)(id, SEL, ...);
extern message (*__objc_msg_forward2)(id, SEL);

/* Stands before every object. */
typedef struct {
    _Alignas(16) _Atomic int32_t references, users;
    Class of;
} header;

struct object {
    Class isa;
};

#define KINDS 64

static struct {
    Class of;
    int64_t alive;
} kind[KINDS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

static header *header_of(id object)
{
    return (header *)(void *)object - 1;
}

static void count(Class of, int64_t by)
{
    pthread_mutex_lock(&lock);
    int32_t i = 0;
    while (i < KINDS && kind[i].of && kind[i].of != of) i++;
    if (i == KINDS) fake_fatal("more than %d classes", KINDS);
    kind[i].of = of;
    kind[i].alive += by;
    pthread_mutex_unlock(&lock);
}

int64_t fake_metal_alive(char *text, size_t bytes)
{
    int64_t alive = 0;
    size_t at = 0;
    if (bytes) *text = 0;
    pthread_mutex_lock(&lock);
    for (int32_t i = 0; i < KINDS && kind[i].of; i++) {
        alive += kind[i].alive;
        if (!kind[i].alive || at >= bytes) continue;
        at += (size_t)snprintf(text + at, bytes - at, "%s%lld %s", at ? ", " : "", (long long)kind[i].alive,
                               class_getName(kind[i].of));
    }
    pthread_mutex_unlock(&lock);
    return alive;
}

id fake_create(Class of)
{
    header *h = calloc(1, sizeof *h + class_getInstanceSize(of));
    if (!h) fake_fatal("no memory for a %s", class_getName(of));
    h->references = 1;
    h->of = of;
    struct object *object = (void *)(h + 1);
    object->isa = of;
    count(of, 1);
    return (id)(void *)object;
}

void fake_use(id object)
{
    header_of(object)->users++;
}

void fake_unuse(id object)
{
    header_of(object)->users--;
}

void *fake_room(void *array, int32_t n, int32_t *room, size_t item)
{
    if (n < *room) return array;
    *room = *room ? 2 * *room : 8;
    array = realloc(array, (size_t)*room * item);
    if (!array) fake_fatal("no memory");
    return array;
}

/* ---- what is no longer alive ---------------------------------------------------------- */

/* The class of an object that was released for the last time. It understands nothing; its memory is kept. */
__attribute__((objc_root_class))
@interface FakeReleased {
    Class isa;
}
@end

@implementation FakeReleased
@end

static Class released(void)
{
    return objc_lookUpClass("FakeReleased");
}

static id refuse(id object, SEL selector, ...)
{
    const struct object *o = (void *)object;
    if (o->isa == released())
        fake_fatal("-%s to a %s that was released for the last time before", sel_getName(selector),
                   class_getName(header_of(object)->of));
    fake_fatal("%s does not know -%s", class_getName(o->isa), sel_getName(selector));
}

static message refusal(id object, SEL selector)
{
    (void)object, (void)selector;
    return refuse;
}

__attribute__((constructor)) static void install(void)
{
    __objc_msg_forward2 = refusal;
}

/* ---- the root -------------------------------------------------------------------------- */

/* Classes of the headers have no variables; those of the same name that begin with Fake stand for them. */
static Class concrete(Class of)
{
    const char *name = class_getName(of);
    char fake[96];
    snprintf(fake, sizeof fake, "Fake%s", name + (strncmp(name, "MTL", 3) == 0 ? 3 : 2));
    Class found = strncmp(name, "Fake", 4) == 0 ? Nil : objc_lookUpClass(fake);
    return found ? found : of;
}

@implementation NSObject

+ (instancetype)alloc
{
    return fake_create(concrete((Class)self));
}

+ (instancetype)new
{
    return [[self alloc] init];
}

- (instancetype)init
{
    return self;
}

- (instancetype)retain
{
    header_of(self)->references++;
    return self;
}

- (oneway void)release
{
    if (--header_of(self)->references == 0) [self dealloc];
}

- (void)dealloc
{
    header *h = header_of(self);
    if (h->users) fake_fatal("a %s was freed while a command buffer with unretained references uses it", class_getName(h->of));
    count(h->of, -1);
    ((struct object *)(void *)self)->isa = released();
}

- (instancetype)autorelease
{
    extern void fake_pool_add(id object);
    fake_pool_add(self);
    return self;
}

@end
