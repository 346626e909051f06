//! The features that CPUID reports: those that a guest was given, and those that a host can give.
//!
//! The names are those of the flags in Linux' `/proc/cpuinfo`. Sources: the Intel SDM, volume 2A, CPUID; the AMD APM, volume
//! 3, appendix E; Linux `arch/x86/include/asm/cpufeatures.h` and `Documentation/virt/kvm/x86/cpuid.rst`.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};

use super::InvalidValue;

/// One leaf, as CPUID returns it: its number, the number of its subleaf, and EAX, EBX, ECX and EDX.
pub type CpuidLeaf = (u32, u32, [u32; 4]);

/// A register of a leaf whose bits are features, each of which a guest may use if its bit is set.
struct FeatureRegister {
    leaf: u32,
    subleaf: u32,
    /// The index in [`CpuidLeaf`].
    register: usize,
    /// The names of the bits from bit 0 on. `-` is a bit without a name.
    names: &'static str,
    /// Bits that the VMM sets for every guest, or that follow the guest's own state.
    ignored: u32,
}

const REGISTERS: [&str; 4] = ["eax", "ebx", "ecx", "edx"];

const FEATURES: [FeatureRegister; 13] = [
    FeatureRegister {
        leaf: 1,
        subleaf: 0,
        register: 2,
        names: "pni pclmulqdq dtes64 monitor ds_cpl vmx smx est tm2 ssse3 cid sdbg fma cx16 xtpr pdcm - pcid dca sse4_1 \
                sse4_2 x2apic movbe popcnt tsc_deadline_timer aes xsave osxsave avx f16c rdrand hypervisor",
        // tsc_deadline_timer, osxsave and hypervisor.
        ignored: 1 << 24 | 1 << 27 | 1 << 31,
    },
    FeatureRegister {
        leaf: 1,
        subleaf: 0,
        register: 3,
        names: "fpu vme de pse tsc msr pae mce cx8 apic - sep mtrr pge mca cmov pat pse36 pn clflush - dts acpi mmx fxsr \
                sse sse2 ss ht tm ia64 pbe",
        // mtrr and ht.
        ignored: 1 << 12 | 1 << 28,
    },
    FeatureRegister {
        leaf: 7,
        subleaf: 0,
        register: 1,
        names: "fsgsbase tsc_adjust sgx bmi1 hle avx2 fdp_excptn_only smep bmi2 erms invpcid rtm cqm zero_fcs_fds mpx \
                rdt_a avx512f avx512dq rdseed adx smap avx512ifma - clflushopt clwb intel_pt avx512pf avx512er avx512cd \
                sha_ni avx512bw avx512vl",
        ignored: 0,
    },
    FeatureRegister {
        leaf: 7,
        subleaf: 0,
        register: 2,
        names: "prefetchwt1 avx512vbmi umip pku ospke waitpkg avx512_vbmi2 shstk gfni vaes vpclmulqdq avx512_vnni \
                avx512_bitalg tme avx512_vpopcntdq - la57 - - - - - rdpid kl bus_lock_detect cldemote - movdiri \
                movdir64b enqcmd sgx_lc pks",
        // ospke.
        ignored: 1 << 4,
    },
    FeatureRegister {
        leaf: 7,
        subleaf: 0,
        register: 3,
        names: "- sgx_keys avx512_4vnniw avx512_4fmaps fsrm uintr - - avx512_vp2intersect srbds_ctrl md_clear \
                rtm_always_abort - tsx_force_abort serialize hybrid_cpu tsxldtrk - pconfig arch_lbr ibt - amx_bf16 \
                avx512_fp16 amx_tile amx_int8 spec_ctrl intel_stibp flush_l1d arch_capabilities core_capabilities \
                spec_ctrl_ssbd",
        ignored: 0,
    },
    FeatureRegister {
        leaf: 7,
        subleaf: 1,
        register: 0,
        names: "sha512 sm3 sm4 - avx_vnni avx512_bf16 lass cmpccxadd - - fzrm fsrs fsrc - - - - fred lkgs wrmsrns - \
                amx_fp16 hreset avx_ifma - - lam",
        ignored: 0,
    },
    FeatureRegister {
        leaf: 0xd,
        subleaf: 0,
        register: 0,
        names: "xsave_x87 xsave_sse xsave_avx xsave_bndregs xsave_bndcsr xsave_opmask xsave_zmm_hi256 xsave_hi16_zmm - \
                xsave_pkru - - - - - - - xsave_tilecfg xsave_tiledata",
        ignored: 0,
    },
    FeatureRegister { leaf: 0xd, subleaf: 0, register: 3, names: "", ignored: 0 },
    FeatureRegister {
        leaf: 0xd,
        subleaf: 1,
        register: 0,
        names: "xsaveopt xsavec xgetbv1 xsaves xfd",
        ignored: 0,
    },
    FeatureRegister {
        leaf: 0x4000_0001,
        subleaf: 0,
        register: 0,
        names: "kvm_clocksource kvm_nop_io_delay kvm_mmu_op kvm_clocksource2 kvm_async_pf kvm_steal_time kvm_pv_eoi \
                kvm_pv_unhalt - kvm_pv_tlb_flush kvm_async_pf_vmexit kvm_pv_send_ipi kvm_poll_control kvm_pv_sched_yield \
                kvm_async_pf_int kvm_msi_ext_dest_id kvm_hc_map_gpa_range kvm_migration_control - - - - - - \
                kvm_clocksource_stable",
        // kvm_msi_ext_dest_id: Cloud Hypervisor gives it to every guest, and KVM does not list it.
        ignored: 1 << 15,
    },
    FeatureRegister {
        leaf: 0x8000_0001,
        subleaf: 0,
        register: 2,
        names: "lahf_lm cmp_legacy svm extapic cr8_legacy abm sse4a misalignsse 3dnowprefetch osvw ibs xop skinit wdt - \
                lwp fma4 tce - nodeid_msr - tbm topoext perfctr_core perfctr_nb - bpext ptsc perfctr_llc mwaitx",
        ignored: 0,
    },
    FeatureRegister {
        leaf: 0x8000_0001,
        subleaf: 0,
        register: 3,
        names: "fpu vme de pse tsc msr pae mce cx8 apic - syscall mtrr pge mca cmov pat pse36 - mp nx - mmxext mmx fxsr \
                fxsr_opt pdpe1gb rdtscp - lm 3dnowext 3dnow",
        // mtrr.
        ignored: 1 << 12,
    },
    FeatureRegister {
        leaf: 0x8000_0008,
        subleaf: 0,
        register: 1,
        names: "clzero irperf xsaveerptr - rdpru - - - - wbnoinvd - - amd_ibpb - amd_ibrs amd_stibp - \
                amd_stibp_always_on - - - - - amd_ppin amd_ssbd virt_ssbd amd_ssb_no cppc amd_psfd btc_no",
        ignored: 0,
    },
];

impl FeatureRegister {
    fn name_of(&self, bit: u32) -> String {
        match self.names.split_whitespace().nth(bit as usize) {
            Some(name) if name != "-" => name.to_owned(),
            _ => format!("CPUID {self} bit {bit}"),
        }
    }
}

impl fmt::Display for FeatureRegister {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:x}.{}.{}", self.leaf, self.subleaf, REGISTERS[self.register])
    }
}

/// The values of the registers that report features. A register that is not there reports none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "BTreeMap<String, String>", try_from = "BTreeMap<String, String>")]
pub struct Cpuid(BTreeMap<String, u32>);

impl Cpuid {
    /// Takes the registers that report features out of the leaves.
    #[must_use]
    pub fn of(leaves: &[CpuidLeaf]) -> Self {
        let value = |feature: &FeatureRegister| {
            let at = (feature.leaf, feature.subleaf);
            let leaf = leaves.iter().find(|(leaf, subleaf, _)| (*leaf, *subleaf) == at)?;
            Some((feature.to_string(), leaf.2[feature.register]))
        };
        Self(FEATURES.iter().filter_map(value).filter(|(_, value)| *value != 0).collect())
    }

    /// The names of the features that this has and `host` lacks.
    #[must_use]
    pub fn missing_from(&self, host: &Self) -> BTreeSet<String> {
        let value =
            |of: &Self, register: &FeatureRegister| of.0.get(&register.to_string()).copied().unwrap_or(0);
        let missing = |register: &'static FeatureRegister| {
            let lacking = value(self, register) & !value(host, register) & !register.ignored;
            (0..32).filter(move |bit| lacking & (1 << bit) != 0).map(|bit| register.name_of(bit))
        };
        FEATURES.iter().flat_map(missing).collect()
    }
}

impl From<Cpuid> for BTreeMap<String, String> {
    fn from(Cpuid(registers): Cpuid) -> Self {
        registers.into_iter().map(|(register, value)| (register, format!("{value:08x}"))).collect()
    }
}

impl TryFrom<BTreeMap<String, String>> for Cpuid {
    type Error = InvalidValue;

    fn try_from(registers: BTreeMap<String, String>) -> Result<Self, InvalidValue> {
        let parse = |(register, value): (String, String)| {
            let known = FEATURES.iter().any(|feature| feature.to_string() == register);
            match u32::from_str_radix(&value, 16) {
                Ok(bits) if known && bits != 0 && format!("{bits:08x}") == value => Ok((register, bits)),
                _ => Err(InvalidValue::new(
                    &format!("{register} = {value}"),
                    "is not a feature register of CPUID",
                )),
            }
        };
        Ok(Self(registers.into_iter().map(parse).collect::<Result<_, _>>()?))
    }
}

/// What the processors of a host can do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostCpu {
    /// The flags that Linux names: `flags` of `/proc/cpuinfo`.
    pub flags: BTreeSet<String>,
    /// What the host can give to a guest, if it says so.
    pub cpuid: Option<Cpuid>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a Zen 5 processor reports in leaves 1, 7 and 0x80000001.
    fn zen() -> Vec<CpuidLeaf> {
        vec![
            (1, 0, [0x00b4_0f40, 0, 0xfffa_3203, 0x178b_fbff]),
            (7, 0, [1, 0xf1bf_27ab, 0x0040_5fce, 0x9000_0110]),
            (7, 1, [0x30, 0, 0, 0]),
            (0x8000_0001, 0, [0, 0, 0x0044_03f3, 0x2fd3_fbff]),
        ]
    }

    fn changed(leaf: u32, subleaf: u32, register: usize, clear: u32) -> Cpuid {
        let mut leaves = zen();
        let found = leaves.iter_mut().find(|(l, s, _)| (*l, *s) == (leaf, subleaf)).unwrap();
        assert_eq!(found.2[register] & clear, clear, "the test clears what is set");
        found.2[register] &= !clear;
        Cpuid::of(&leaves)
    }

    #[test]
    fn missing_features_are_named() {
        let guest = Cpuid::of(&zen());
        let missing = |host: Cpuid| guest.missing_from(&host).into_iter().collect::<Vec<_>>();
        assert_eq!(missing(guest.clone()), [""; 0]);
        assert_eq!(missing(changed(7, 0, 1, 1 << 16 | 1 << 5)), ["avx2", "avx512f"]);
        assert_eq!(missing(changed(7, 1, 0, 1 << 4)), ["avx_vnni"]);
        assert_eq!(missing(changed(1, 0, 2, 1 << 25)), ["aes"]);
        assert_eq!(missing(changed(0x8000_0001, 0, 3, 1 << 20)), ["nx"]);
        // A bit without a name is named by its place, and a leaf that is not there has no feature.
        let odd = Cpuid::of(&[(7, 1, [1 << 31, 0, 0, 0])]);
        let missing: Vec<_> = odd.missing_from(&Cpuid::default()).into_iter().collect();
        assert_eq!(missing, ["CPUID 7.1.eax bit 31"]);
        // A host that can do more is fit.
        assert_eq!(changed(7, 0, 1, 1 << 5).missing_from(&guest), BTreeSet::new());
    }

    #[test]
    fn what_the_vmm_sets_for_every_guest_is_not_asked_of_the_host() {
        let guest = Cpuid::of(&zen());
        for (register, bits) in [(2, 1 << 27 | 1 << 31 | 1 << 24), (3, 1 << 12 | 1 << 28)] {
            assert_eq!(guest.missing_from(&changed(1, 0, register, bits)), BTreeSet::new());
        }
        // kvm_clocksource and kvm_msi_ext_dest_id, as the state of a VM of v53.0 has them.
        let given = Cpuid::of(&[(0x4000_0001, 0, [1 | 1 << 15, 0, 0, 0])]);
        let host = Cpuid::of(&[(0x4000_0001, 0, [1, 0, 0, 0])]);
        assert_eq!(given.missing_from(&host), BTreeSet::new());
    }

    #[test]
    fn each_list_of_names_fits_a_register_and_has_no_name_twice() {
        let mut names = BTreeSet::new();
        for register in &FEATURES {
            assert!(register.names.split_whitespace().count() <= 32, "{register}");
            for name in register.names.split_whitespace().filter(|name| *name != "-") {
                // AMD repeats the features of leaf 1.
                assert!(names.insert(name) || register.leaf == 0x8000_0001, "{name}");
            }
        }
    }

    #[test]
    fn the_text_form_is_exact() {
        let text = serde_json::to_string(&Cpuid::of(&zen())).unwrap();
        assert!(text.starts_with(r#"{"1.0.ecx":"fffa3203","1.0.edx":"178bfbff","7.0.ebx":"#), "{text}");
        assert_eq!(serde_json::from_str::<Cpuid>(&text).unwrap(), Cpuid::of(&zen()));
        for bad in [
            r#"{"1.0.ecx":"FFFA3203"}"#,
            r#"{"1.0.ecx":"1"}"#,
            r#"{"1.0.ecx":"00000000"}"#,
            r#"{"1.0.eax":"00000001"}"#,
            r#"{"1.0.ecx":"+ffa3203"}"#,
        ] {
            assert!(serde_json::from_str::<Cpuid>(bad).is_err(), "{bad}");
        }
    }
}
