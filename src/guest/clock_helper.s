# The program that guest/settle.rs runs as root in the guest. Its machine code is in clock_helper.rs; a test assembles
# this file and compares. The program is for Linux on x86-64. It uses no library, and no writable data except its stack.
#
# The program reads one struct rand_pool_info of 520 bytes for RNDADDENTROPY from stdin, and then any number of structs
# timex of 208 bytes for adjtimex. After each of these structs it writes the time, a struct timespec, to stdout. Its
# exit status is 0 if stdin ends between two structs, and otherwise the number of the error.

        .intel_syntax noprefix
        .globl  _start
_start:
        sub     rsp, 1024
        mov     ebx, 10                 # 10: cannot open /dev/urandom
        lea     rdi, [rip + path]
        mov     esi, 1                  # O_WRONLY
        mov     eax, 2                  # open
        syscall
        test    eax, eax
        js      fail
        mov     r12d, eax
        inc     ebx                     # 11: the entropy was cut short
        mov     r13d, 520
        call    fill
        jnz     fail
        inc     ebx                     # 12: RNDADDENTROPY refused
        mov     edi, r12d
        mov     esi, 0x40085203
        mov     rdx, rsp
        mov     eax, 16                 # ioctl
        syscall
        test    eax, eax
        js      fail
        inc     ebx                     # 13: RNDRESEEDCRNG refused
        mov     edi, r12d
        mov     esi, 0x5207
        mov     eax, 16
        syscall
        test    eax, eax
        js      fail
tell:
        xor     edi, edi                # CLOCK_REALTIME
        lea     rsi, [rsp + 512]
        mov     eax, 228                # clock_gettime
        syscall
        mov     edi, 1
        mov     edx, 16
        mov     eax, 1                  # write
        syscall
        mov     ebx, 14                 # 14: nobody listens
        cmp     eax, 16
        jne     fail
        inc     ebx                     # 15: a timex was cut short
        mov     r13d, 208
        call    fill
        jnz     ended
        inc     ebx                     # 16: adjtimex refused
        mov     rdi, rsp
        mov     eax, 159                # adjtimex
        syscall
        test    eax, eax
        js      fail
        jmp     tell
ended:
        test    r14d, r14d
        jnz     fail
        xor     ebx, ebx
fail:
        mov     edi, ebx
        mov     eax, 60                 # exit
        syscall

# Reads r13d bytes to the caller's rsp. The zero flag is set if all of them were read; r14d is the number of bytes read.
fill:
        xor     r14d, r14d
more:
        xor     edi, edi
        lea     rsi, [rsp + r14 + 8]
        mov     edx, r13d
        sub     edx, r14d
        jz      filled
        xor     eax, eax                # read
        syscall
        test    eax, eax
        jle     filled
        add     r14d, eax
        jmp     more
filled:
        cmp     r14d, r13d
        ret
path:   .asciz  "/dev/urandom"
