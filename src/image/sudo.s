# A `sudo` for guests whose image has none: runs a command as root. nixbox makes it executable for the group of the guest's user
# alone. It knows the options -n, -E, -H and --, and refuses every other. The command is looked up on PATH by `env`.
#
# Exit statuses of its own: 1 for options, 126 if it could not become root, 127 if `env` could not be run.
    .intel_syntax noprefix
    .text
    .globl _start
_start:
    mov rbx, [rsp]              # argc
    lea r12, [rsp + 8]          # argv
    lea r13, [r12 + rbx*8 + 8]  # envp
next:
    add r12, 8
    mov rdi, [r12]
    test rdi, rdi
    jz refuse
    cmp byte ptr [rdi], '-'
    jne command
    mov al, [rdi + 1]
    test al, al
    jz refuse
    cmp byte ptr [rdi + 2], 0
    jne refuse
    cmp al, 'n'
    je next
    cmp al, 'E'
    je next
    cmp al, 'H'
    je next
    cmp al, '-'
    jne refuse
    add r12, 8
    cmp qword ptr [r12], 0
    je refuse
command:
    xor edi, edi
    xor esi, esi
    mov eax, 116                # setgroups(0, NULL)
    syscall
    test eax, eax
    jnz powerless
    xor edi, edi
    mov eax, 106                # setgid(0)
    syscall
    test eax, eax
    jnz powerless
    xor edi, edi
    mov eax, 105                # setuid(0)
    syscall
    test eax, eax
    jnz powerless
    lea rax, [rip + env_word]
    mov [r12 - 8], rax
    lea rsi, [r12 - 8]
    lea rdi, [rip + env_program]
    mov rdx, r13
    mov eax, 59                 # execve
    syscall
    mov edi, 127
    jmp exit
powerless:
    mov edi, 126
    jmp exit
refuse:
    mov edi, 2
    lea rsi, [rip + usage_text]
    mov edx, offset usage_end - usage_text
    mov eax, 1                  # write
    syscall
    mov edi, 1
exit:
    mov eax, 60
    syscall
env_word:
    .asciz "env"
env_program:
    .asciz "/run/nixbox/guest/bin/env"
usage_text:
    .ascii "usage: sudo [-n] [-E] [-H] [--] COMMAND [ARGUMENT]...\n"
usage_end:
