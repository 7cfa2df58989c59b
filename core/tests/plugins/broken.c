/* Libraries that are not plugins, chosen by -DCASE=... */
#include "sparta_plugin.h"
#include <stdlib.h>

#define NO_SYMBOL 1
#define NULL_PLUGIN 2
#define NEXT_MAJOR 3
#define SMALL 4
#define NO_TABLE 5
#define NEXT_INTERFACE 6
#define UNKNOWN_INTERFACE 7
#define EMPTY_TABLE 8

#if CASE == NEXT_INTERFACE
#define ID "sparta.method/2"
#elif CASE == UNKNOWN_INTERFACE
#define ID "sparta.sampler/1"
#else
#define ID SPARTA_METHOD_ID
#endif

static const SpartaMethod table = {.size = sizeof(size_t)};

static const SpartaInterface interface = {
    .size = CASE == SMALL ? 8 : sizeof(SpartaInterface),
    .id = {(const uint8_t *)ID, sizeof(ID) - 1},
    .table = CASE == NO_TABLE ? NULL : &table,
};

static const SpartaInterface *const interfaces[] = {&interface};

static const SpartaPlugin plugin = {
    .size = sizeof(SpartaPlugin),
    .abi_major = CASE == NEXT_MAJOR ? 2 : SPARTA_ABI_MAJOR,
    .interface_count = 1,
    .interfaces = interfaces,
};

#if CASE == NO_SYMBOL
__attribute__((constructor)) static void opened(void) { abort(); }
const SpartaPlugin *another_entry(const SpartaHost *host) {
#else
const SpartaPlugin *sparta_plugin_entry(const SpartaHost *host) {
#endif
    (void)host;
    return CASE == NULL_PLUGIN ? NULL : &plugin;
}
