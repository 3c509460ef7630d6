/* The decoders of the guest's programs, under AddressSanitizer and UndefinedBehaviorSanitizer: `guest N SEED`.
 *
 * Every input is in memory of exactly its size. Says how many inputs there were; ends with 1 where a decoder is wrong, and
 * as the sanitizers do where it reads or writes what is not its own.
 */
#define _GNU_SOURCE
#include <ctype.h>
#define main guest_main
#include "testbed-guest.c"
#undef main
#undef PATIENCE
#define main call_main
#include "testbed-call.c"
#undef main

static unsigned long long state;

static unsigned drawn(unsigned below)
{
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (unsigned)(state >> 11) % below;
}

static _Noreturn void wrong(const char *what, const char *input)
{
    fprintf(stderr, "%s: wrong for <%s>\n", what, input);
    exit(1);
}

static char *copied(const char *text)
{
    char *copy = malloc(strlen(text) + 1);

    if (!copy)
        wrong("no memory", text);
    strcpy(copy, text);
    return copy;
}

/* Return a text of the letters that decoders care for, and of others. */
static char *text(const char *letters)
{
    unsigned length = drawn(90);
    char *made = malloc(length + 1);

    for (unsigned n = 0; n < length; n++)
        made[n] = drawn(8) ? letters[drawn((unsigned)strlen(letters))] : (char)(1 + drawn(255));
    made[length] = 0;
    return made;
}

/* A line that is cut: no word is longer than it was, and one without % is as it was. */
static void a_line(char *line)
{
    char *words[8], *before = copied(line), *rest = before;
    int count = cut(line, words, 8);

    if (count < 1 || count > 8)
        wrong("cut", before);
    for (int n = 0; n < count; n++) {
        const char *word = strsep(&rest, "\t");
        if (strlen(words[n]) > strlen(word) || (!strchr(word, '%') && strcmp(words[n], word)))
            wrong("cut", word);
    }
    free(before);
    free(line);
}

/* Words that are quoted as the host quotes them come out as they went in. */
static void a_round(void)
{
    char *words[8], *given[8], line[8 * 300] = "", *end = line;
    int count = 1 + (int)drawn(8);

    for (int n = 0; n < count; n++) {
        given[n] = text("%\t\n\"\\ abc\x7f\xff");
        for (const char *c = given[n]; *c; c++)
            end += isalnum((unsigned char)*c) ? sprintf(end, "%c", *c) : sprintf(end, "%%%02X", (unsigned char)*c);
        end += sprintf(end, n + 1 < count ? "\t" : "");
    }
    char *copy = copied(line);
    if (cut(copy, words, 8) != count)
        wrong("count", line);
    for (int n = 0; n < count; n++) {
        if (strcmp(words[n], given[n]))
            wrong("round", line);
        free(given[n]);
    }
    free(copy);
}

/* Digits in pairs are bytes, and nothing else is. */
static void a_key(char *digits)
{
    size_t length = strlen(digits), room = drawn(48);
    unsigned char *bytes = malloc(room + !room);
    ssize_t got = from_hex(digits, bytes, room);
    int right = !(length % 2) && length / 2 <= room && strspn(digits, "0123456789abcdefABCDEF") == length;

    if (right ? got != (ssize_t)(length / 2) : got != -1)
        wrong("from_hex", digits);
    for (ssize_t n = 0; n < got; n++) {
        unsigned byte;
        if (sscanf(digits + 2 * n, "%2x", &byte) != 1 || byte != bytes[n])
            wrong("from_hex", digits);
    }
    free(bytes);
    free(digits);
}

/* What is asked for by words that do nothing but be remembered, or be refused, with an answer that is one line of JSON. */
static void an_order(struct guest *guest)
{
    static const char *const verbs[] = {"signal", "hangup", "nothing", "\"", ""};
    char *line = malloc(400), *rest = text("%0123456789\t-\"\\");

    snprintf(line, 400, "%s\t%s", verbs[drawn(5)], rest);
    take_line(guest, line);
    if (guest->due < 0 || guest->due > 64)
        wrong("due", rest);
    if (guest->due == 64)
        guest->due = 0;
    free(line);
    free(rest);
}

static void some_numbers(void)
{
    struct timespec when;
    char *given = text("0123456789.e+-naif "), quote[40];

    if (number(given, 64) > 64)
        wrong("number", given);
    if (!moment(given, &when) && (when.tv_nsec < 0 || when.tv_nsec >= 1000000000))
        wrong("moment", given);
    quoted(given, quote, 1 + drawn(sizeof(quote)));
    free(given);
}

static void some_arguments(void)
{
    int count = (int)drawn(9), at;
    char **words = malloc(((size_t)count + 1) * sizeof(*words));

    for (int n = 0; n < count; n++)
        words[n] = drawn(3) ? text("-=/") : copied("--");
    words[count] = NULL;
    at = command_at(count, words);
    if (at != -1 && (at < 5 || at >= count || strcmp(words[at - 1], "--")))
        wrong("command_at", count ? words[count - 1] : "");
    for (int n = 0; n < count; n++)
        free(words[n]);
    free(words);
}

/* A number in a line of its own is heard, and nothing else is: a command would be run twice. */
static void an_answer(void)
{
    char line[40];
    int ends[2], number = (int)drawn(1 << 30), right = !drawn(2);

    snprintf(line, sizeof(line), right ? "%d\n" : "%dx\n", number);
    if (pipe(ends) || write(ends[1], line, strlen(line)) < 0)
        exit(2);
    close(ends[1]);
    int first = heard(ends[0]), second = heard(ends[0]);
    close(ends[0]);
    if (first != (right ? number : -1) || second != -1)
        wrong("heard", line);
}

int main(int count, char **words)
{
    /* What was wrong once: a sequence that the end of its line cuts off, and an odd number of digits. */
    static const char *const lines[] = {"nop\tx%a", "%", "%4", "\t%", "%\t%4", "%%41", "%4%41"};
    static const char *const keys[] = {"abc", "a", "g0", "0g", "0x", "-1", " 1", ""};
    unsigned long rounds = count > 1 ? strtoul(words[1], NULL, 10) : 100000;
    struct guest guest = {.ssh = -1, .told = -1, .said = -1, .port = open("/dev/null", O_WRONLY)};

    state = 88172645463325252ULL ^ (count > 2 ? strtoull(words[2], NULL, 10) : 0);
    for (size_t n = 0; n < sizeof(lines) / sizeof(*lines); n++)
        a_line(copied(lines[n]));
    for (size_t n = 0; n < sizeof(keys) / sizeof(*keys); n++)
        a_key(copied(keys[n]));
    for (unsigned long n = 0; n < rounds; n++) {
        a_line(text("%%%%0123456789abcdefxX -+\t\t\t"));
        a_round();
        a_key(text("0123456789abcdefABCDEF"));
        an_order(&guest);
        some_numbers();
        some_arguments();
        an_answer();
    }
    printf("%lu\n", 7 * rounds);
    return 0;
}
