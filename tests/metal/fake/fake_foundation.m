/* The few classes of Foundation that the Metal device uses. */
#include "fake.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- pools ------------------------------------------------------------------------------ */

@interface FakeAutoreleasePool : NSAutoreleasePool {
  @public
    FakeAutoreleasePool *outer;
    id *object;
    size_t objects, room;
}
@end

static _Thread_local FakeAutoreleasePool *pool;

void fake_pool_add(id object);

void fake_pool_add(id object)
{
    if (!pool) fake_fatal("an object was autoreleased on a thread with no autorelease pool");
    if (pool->objects == pool->room) {
        pool->room = pool->room ? 2 * pool->room : 16;
        pool->object = realloc(pool->object, pool->room * sizeof *pool->object);
        if (!pool->object) fake_fatal("no memory for an autorelease pool");
    }
    pool->object[pool->objects++] = object;
}

@implementation NSAutoreleasePool
- (void)drain
{
    [self release];
}
@end

@implementation FakeAutoreleasePool

- (instancetype)init
{
    outer = pool;
    pool = self;
    return self;
}

- (void)dealloc
{
    if (pool != self) fake_fatal("autorelease pools were not drained from the innermost outwards");
    for (size_t i = 0; i < objects; i++) [object[i] release];
    free(object);
    pool = outer;
    [super dealloc];
}

@end

/* ---- text --------------------------------------------------------------------------------- */

@interface FakeString : NSString {
  @public
    char *text;
}
@end

static NSString *string_of(const char *text)
{
    FakeString *s = [FakeString alloc];
    s->text = strdup(text);
    if (!s->text) fake_fatal("no memory for a string");
    return [s autorelease];
}

NSString *fake_string(const char *format, ...)
{
    char text[1024];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    return string_of(text);
}

@implementation NSString
@dynamic UTF8String;

+ (instancetype)stringWithUTF8String:(const char *)text
{
    if (!text) fake_fatal("+[NSString stringWithUTF8String:] of NULL");
    return string_of(text);
}

@end

@implementation FakeString

- (const char *)UTF8String
{
    return text;
}

- (void)dealloc
{
    free(text);
    [super dealloc];
}

@end

/* ---- files, errors, lists -------------------------------------------------------------------- */

@interface FakeURL : NSURL {
  @public
    NSString *path;
}
@end

@implementation NSURL
@dynamic fileSystemRepresentation;

+ (instancetype)fileURLWithPath:(NSString *)path
{
    if (!path) fake_fatal("+[NSURL fileURLWithPath:] of nil");
    FakeURL *u = [FakeURL alloc];
    u->path = [path retain];
    return [u autorelease];
}

@end

@implementation FakeURL

- (const char *)fileSystemRepresentation
{
    return path.UTF8String;
}

- (void)dealloc
{
    [path release];
    [super dealloc];
}

@end

@interface FakeError : NSError {
  @public
    NSInteger number;
    NSString *text;
}
@end

@implementation NSError
@dynamic code, localizedDescription;
@end

@implementation FakeError

- (NSInteger)code
{
    return number;
}

- (NSString *)localizedDescription
{
    return text;
}

- (void)dealloc
{
    [text release];
    [super dealloc];
}

@end

/* Autoreleased. */
NSError *fake_error(NSInteger code, const char *format, ...)
{
    char text[1024];
    va_list list;
    va_start(list, format);
    vsnprintf(text, sizeof text, format, list);
    va_end(list);
    FakeError *e = [FakeError alloc];
    e->number = code;
    e->text = [string_of(text) retain];
    return [e autorelease];
}

void fake_give(NSError **out, NSError *error)
{
    if (out) *out = error;
}

@interface FakeArray : NSArray {
  @public
    id only;
}
@end

@implementation NSArray
@dynamic count;

+ (instancetype)arrayWithObject:(id)object
{
    if (!object) fake_fatal("+[NSArray arrayWithObject:] of nil");
    FakeArray *a = [FakeArray alloc];
    a->only = [object retain];
    return [a autorelease];
}

- (id)objectAtIndex:(NSUInteger)index
{
    (void)index;
    return nil;
}

@end

@implementation FakeArray

- (NSUInteger)count
{
    return 1;
}

- (id)objectAtIndex:(NSUInteger)index
{
    if (index) fake_fatal("object %lu of an array of 1", index);
    return only;
}

- (void)dealloc
{
    [only release];
    [super dealloc];
}

@end
