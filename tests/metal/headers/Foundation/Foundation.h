/*
 * Foundation as far as the Metal device needs it: our own declarations, for machines that lack Apple's headers.
 * check_headers.py compares selectors and types with public metadata.
 */
#ifndef FM_FOUNDATION_H
#define FM_FOUNDATION_H

#include <stddef.h>
#include <stdint.h>

#ifdef __APPLE__
#include <objc/objc.h>
#else
typedef unsigned char BOOL; /* as GNU's runtime has it */
#define YES ((BOOL)1)
#define NO ((BOOL)0)
#define nil ((id)0)
#define Nil ((Class)0)
#endif

typedef unsigned long NSUInteger;
typedef long NSInteger;
typedef double CFTimeInterval;

@class NSString;

@protocol NSObject
- (instancetype)retain;
- (oneway void)release;
- (instancetype)autorelease;
@end

__attribute__((objc_root_class))
@interface NSObject<NSObject> {
    Class isa;
}
+ (instancetype)alloc;
+ (instancetype)new;
- (instancetype)init;
- (void)dealloc;
@end

@interface NSAutoreleasePool : NSObject
- (void)drain;
@end

@interface NSString : NSObject
+ (instancetype)stringWithUTF8String:(const char *)text;
@property(readonly) const char *UTF8String;
@end

@interface NSURL : NSObject
+ (instancetype)fileURLWithPath:(NSString *)path;
@property(readonly) const char *fileSystemRepresentation;
@end

@interface NSError : NSObject
@property(readonly) NSInteger code;
@property(readonly, copy) NSString *localizedDescription;
@end

@interface NSArray<ObjectType> : NSObject
+ (instancetype)arrayWithObject:(ObjectType)object;
@property(readonly) NSUInteger count;
- (ObjectType)objectAtIndex:(NSUInteger)index;
@end

#endif
